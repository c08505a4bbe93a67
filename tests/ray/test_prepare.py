"""Text as it comes: broken rows, copies in several splits, a word without an end."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bkray.config import UserError, parse_recipe
from bkray.reporting.progress import Progress
from bkray.runtime import prepare
from bkray.runtime.exits import find_user_error
from bkray.runtime.pipeline import run_pipeline
from bkray.runtime.prepare import _copies

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

COPY = "every value that an operator keeps is found in three files, and stays in one of them only"
AWKWARD = {
    "malformed JSON": b"{broken",
    "not UTF-8": b'{"text": "caf\xff"}',
    "no text field": b'{"title": "a row without a text"}',
    "too long": json.dumps({"text": "z" * 400_000}).encode(),
}


def prepared(corpus, out, until="windows", tokenizer=None, **cleaning):
    """A run on a corpus section, or on a folder of JSON Lines."""
    section = corpus if isinstance(corpus, dict) else {"kind": "jsonl", "path": str(corpus)}
    recipe = parse_recipe(
        {
            "name": "awkward",
            "corpus": section,
            "cleaning": {"max_chars": 300_000, **cleaning},
            "tokenizer": tokenizer or {"vocab_size": 300},
            "window": 32,
        }
    )
    return run_pipeline(recipe, out, until=until, progress=Progress(Console(quiet=True)))


def test_awkward_rows_are_set_aside_and_copies_stay_in_one_split(texts, tmp_path):
    """So many letters at random would take the training of BPE a minute if they were one word."""
    lines = (texts / "a.jsonl").read_bytes().splitlines()
    endless = "".join(random.Random(0).choices("ACGT", k=149_000)) + " " * 149_000 + "."
    splits = {"train": lines[:20], "validation": lines[20:30], "test": lines[30:]}
    (tmp_path / "corpus").mkdir()
    splits["test"] = [*splits["test"], json.dumps({"text": "zqxj " * 500}).encode()]
    splits["train"] = [*AWKWARD.values(), *splits["train"], json.dumps({"text": endless}).encode()]
    for name, own in splits.items():
        rows = [*own, json.dumps({"text": COPY}).encode(), b'{"text": " "}', b""]
        (tmp_path / "corpus" / f"{name}.jsonl").write_bytes(b"\n".join(rows))
    artifacts = prepared(tmp_path / "corpus", tmp_path / "out").artifacts
    documents = artifacts["documents"]
    rejects = pq.read_table(documents.path / "rejects.parquet").to_pylist()
    assert [(row["source"], row["ordinal"], row["reason"]) for row in rejects] == [
        ("train.jsonl", place, reason) for place, reason in enumerate(AWKWARD)
    ]
    assert documents.manifest["rejects"] == dict.fromkeys(AWKWARD, 1)
    assert not (documents.path / ".rejects").exists()
    kept = pq.read_table(documents.parts).to_pylist()
    assert [row["text"] for row in kept].count(COPY) == 1
    assert [row["text"] for row in kept].count(endless) == 1
    assert documents.manifest["removed"] == 2
    assert len(kept) == len(lines) + 3
    assert artifacts["windows"].splits.keys() == splits.keys()
    bpe = json.loads((artifacts["tokenizer"].path / "tokenizer.json").read_text())
    assert not [token for token in bpe["model"]["vocab"] if "zq" in token], "learnt from the test split"


def test_a_tokenizer_learns_from_the_training_documents_of_its_corpus_alone(texts, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    rows = {"train": [b"{broken", b'{"text": "vwkj vwkj vwkj"}'], "test": [b'{"text": "zqxj zqxj zqxj"}']}
    for name, lines in rows.items():
        (other / f"{name}.jsonl").write_bytes(b"\n".join(lines * 3))
    vocabulary = {"vocab_size": 300, "corpus": {"kind": "jsonl", "path": str(other)}}
    with pytest.raises(Exception, match="rejected") as caught:
        prepared(texts, tmp_path / "out", tokenizer=vocabulary)
    assert "tokenizer.corpus: 3 of 9 documents were rejected" in str(find_user_error(caught.value))
    artifacts = prepared(texts, tmp_path / "out", tokenizer=vocabulary, max_rejects=0.6).artifacts
    bpe = json.loads((artifacts["tokenizer"].path / "tokenizer.json").read_text())
    learnt = {token for token in bpe["model"]["vocab"] if len(token) > 1} - {"<|endoftext|>"}
    assert learnt == {"vw", "kj", "vwkj", "Ġvwkj"}
    assert artifacts["tokenizer"].manifest["rejects"] == {"malformed JSON": 3}
    assert artifacts["windows"].splits["train"]


def test_a_malformed_row_of_every_kind_of_source_is_set_aside(texts, tmp_path, monkeypatch):
    class Reading(prepare._ReadShards):
        """In workers, which have not got this process's path, packages are found in `tmp_path` too."""

        def __call__(self, batch):
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(tmp_path)
                yield from super().__call__(batch)

    monkeypatch.setattr(prepare, "_ReadShards", Reading)
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("bkray_sample", "hub", "lines"):
        (tmp_path / folder).mkdir()
    first, *others = (texts / "a.jsonl").read_bytes().splitlines()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([first, b"{broken", *others]))
    pq.write_table(pa.table({"text": ["one", "two", None]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_bytes(b"three\n\ncaf\xff\n\nfour")
    (tmp_path / "bkray_sample" / "broken.py").write_text('"""doc"""\ndef f(:')
    pq.write_table(pa.table({"text": [None, "five"]}), tmp_path / "hub" / "train.parquet")
    (tmp_path / "lines" / "train.jsonl").write_bytes(b'{"text": "six"}\n{broken')
    shares = {"validation": 0.2, "test": 0.2}
    sources = [
        {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), **shares},
        {"kind": "parquet", "path": str(tmp_path / "a.parquet")},
        {"kind": "text", "path": str(tmp_path / "a.txt")},
        {"kind": "docstrings", "packages": ["bkray_sample"]},
        {"kind": "hub", "name": str(tmp_path / "hub"), "rows": 9},
        {"kind": "hub", "name": str(tmp_path / "lines")},
    ]
    corpus = {"kind": "mixed", "sources": sources}
    made = prepared(corpus, tmp_path / "out", until="documents", max_rejects=0.2).artifacts["documents"]
    rejects = pq.read_table(made.path / "rejects.parquet").to_pylist()
    assert [(row["source"], row["ordinal"], row["reason"]) for row in rejects] == [
        ("0/a.jsonl", 1, "malformed JSON"),
        ("1/a.parquet", 2, "text is not a string"),
        ("2/a.txt", 1, "not UTF-8"),
        ("3/bkray_sample/broken.py", 0, "not Python"),
        ("4/hub/train", 0, "text is not a string"),
        ("5/lines/train", 1, "malformed JSON"),
    ]
    assert len(pq.read_table(made.parts)) == 1 + len(others) + 6


def test_a_line_that_takes_a_pattern_too_long_is_named_by_a_worker(tmp_path):
    (tmp_path / "a.txt").write_text("# aa\n# " + "ab" * 14 + "!\n")
    corpus = {"kind": "text", "path": str(tmp_path / "a.txt"), "document_start": "^# ([a-f]+)+$"}
    with pytest.raises(Exception, match="document_start") as caught:
        prepared(corpus, tmp_path / "out")
    said = "a.txt: document_start '^# ([a-f]+)+$' takes more than 2 s for the line that begins with '# abab"
    assert said in str(find_user_error(caught.value))


def without_texts(bucket):
    assert not {"text", "source"} & set(bucket.column_names), "a bucket of texts is a sixteenth of the corpus"
    return _copies(bucket)


def test_no_text_is_gathered_to_find_its_copies(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_copies", without_texts)
    (tmp_path / "corpus").mkdir()
    lines = (texts / "a.jsonl").read_bytes().splitlines()
    for name in ("a", "b", "c"):
        (tmp_path / "corpus" / f"{name}.jsonl").write_bytes(b"\n".join(lines))
    documents = prepared(tmp_path / "corpus", tmp_path / "out", until="documents").artifacts["documents"]
    kept = pq.read_table(documents.parts)
    assert documents.manifest["removed"] == 2 * len(lines)
    assert sorted(kept["text"].to_pylist()) == sorted(json.loads(line)["text"] for line in lines)


def test_a_corpus_of_blank_texts_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": " "}\n' * 9)
    with pytest.raises(UserError, match="1 files hold no document"):
        prepared(tmp_path / "corpus", tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not {name for name in left if not name.startswith(".")}  # a lock, and how long it took
