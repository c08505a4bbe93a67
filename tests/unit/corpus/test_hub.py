"""Data sets read with `datasets`: local folders in its formats, and a name that cannot be loaded."""

import subprocess
import sys
from collections import Counter

import datasets
import pyarrow as pa
import pytest

from bkray.config import UserError
from bkray.config.corpus import Cleaning, HubCorpus
from bkray.corpus import list_shards, read_shard
from bkray.corpus.hub import read_hub


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that `datasets` reads: Parquet splits train and test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "sample"
    root.mkdir()
    for split, rows in {"train": 300, "test": 10}.items():
        texts = [f"= {split} {i} =\n" if i % 5 == 0 else None if i == 3 else f"row {i}" for i in range(rows)]
        datasets.Dataset.from_dict({"text": texts, "n": list(range(rows))}).to_parquet(
            root / f"{split}.parquet"
        )
    return root


def read(corpus):
    tables = [t for shard in list_shards(corpus) for t in read_shard(shard, corpus, Cleaning(), 0)]
    return pa.concat_tables(t[0] for t in tables).to_pylist(), pa.concat_tables(
        t[1] for t in tables
    ).to_pylist()


def test_splits_and_rows(folder):
    corpus = HubCorpus(kind="hub", name=str(folder))
    shards = list_shards(corpus)
    assert [(s.source, s.split, s.carve) for s in shards] == [
        ("sample/test", "test", ()),
        ("sample/train", "train", ("validation",)),
    ]
    documents, rejects = read(corpus)
    found = {(row["source"], row["split"]) for row in documents}
    assert found == {("sample/test", "test"), ("sample/train", "train"), ("sample/train", "validation")}
    assert len(documents) == 308
    assert documents[1]["text"] == "row 1"
    assert [(row["source"], row["ordinal"]) for row in rejects] == [("sample/test", 3), ("sample/train", 3)]


def test_rows_gathered_at_document_start(folder):
    documents, rejects = read(HubCorpus(kind="hub", name=str(folder), document_start="^= .* =$"))
    assert len(documents) == 62
    assert documents[0]["text"] == "= test 0 =\nrow 1\nrow 2\nrow 4"
    assert [(row["source"], row["detail"]) for row in rejects] == [
        ("sample/test", "null, row 3"),
        ("sample/train", "null, row 3"),
    ]


@pytest.mark.parametrize("rows", [1, 130, 1000])
def test_the_first_rows_come_as_a_stream(folder, rows, monkeypatch):
    corpus = HubCorpus(kind="hub", name=str(folder), rows=rows)
    assert {shard.source for shard in list_shards(corpus)} == {"sample/test", "sample/train"}
    streamed, rejects = read(corpus)
    whole, all_rejects = read(HubCorpus(kind="hub", name=str(folder)))
    begins = {row["doc_id"]: row for row in whole}
    assert all(begins[row["doc_id"]] == row for row in streamed)
    assert len(streamed) + len(rejects) == sum(min(rows, count) for count in counts_of(whole, all_rejects))
    with pytest.raises(UserError, match=r"no text_field 'txt'; there are text, n"):
        read(HubCorpus(kind="hub", name=str(folder), rows=rows, text_field="txt"))


@pytest.mark.parametrize("rows", [None, 30])
def test_of_long_rows_few_are_held(folder, rows):
    """Of a stream `datasets` itself holds a piece of 10 MB."""
    for path in folder.glob("*.parquet"):
        path.unlink()
    (folder / "train.jsonl").write_text(f'{{"text": "{"x" * 3_000_000}"}}\n' * 30)
    corpus = HubCorpus(kind="hub", name=str(folder), rows=rows)
    (shard,), before = list_shards(corpus), pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_hub(shard, corpus, max_chars=1000)]
    assert len(held) == 30
    assert max(held) < 25_000_000


def counts_of(*tables):
    """Rows of each split: the empty ones are no documents, and the fixture has none."""
    return Counter(row["source"] for table in tables for row in table).values()


def test_fingerprint_follows_the_files(folder):
    corpus = HubCorpus(kind="hub", name=str(folder))
    before = [shard.fingerprint for shard in list_shards(corpus)]
    assert before == [shard.fingerprint for shard in list_shards(corpus)]
    datasets.Dataset.from_dict({"text": ["new"], "n": [0]}).to_parquet(folder / "train.parquet")
    assert before != [shard.fingerprint for shard in list_shards(corpus)]


def test_wrong_column_and_configuration(folder):
    for wrong in ("txt", "TEXT", "review"):  # the last one for being the only column of text
        with pytest.raises(
            UserError, match=rf"no text_field '{wrong}'; there are text, n; did you mean text_field: text\?"
        ):
            read(HubCorpus(kind="hub", name=str(folder), text_field=wrong))
    with pytest.raises(UserError, match=r"config 'nope'.*BuilderConfig 'nope' not found"):
        list_shards(HubCorpus(kind="hub", name=str(folder), config="nope"))


def test_name_that_cannot_be_loaded_says_what_to_do(tmp_path):
    code = (
        "from bkray.corpus import list_shards; from bkray.config.corpus import HubCorpus\n"
        "list_shards(HubCorpus(kind='hub', name='nobody/nothing', config='raw'))"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    message = run.stderr.rsplit("LoadError:", 1)[1]
    for part in ("'nobody/nothing'", "'raw'", "network", "corpus={kind: text, path: ...}"):
        assert part in message


MALFORMED = {
    "broken.jsonl": (b'{"text": "a"}\n{broken\n\n{"text": "c"}\n', "malformed JSON"),
    "of several types.jsonl": (b'{"text": "a"}\n{"text": 5}\n{"text": "c"}\n', "text is not a string"),
    "no object.jsonl": (b'{"text": "a"}\n[1]\n{"text": "c"}\n', "malformed JSON"),
    "no UTF-8.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n', "not UTF-8"),
    "no UTF-8.txt": (b"a\n\xff\nc\n", "not UTF-8"),
    "too many cells.csv": (b"n,text\n1,a\n2,b,3\n\n3,c\n", "malformed CSV"),
    "too many cells.tsv": (b"n\ttext\n1\ta\n2\tb\t3\n3\tc\n", "malformed CSV"),
    "no UTF-8.csv": (b"text,n\na,1\n\xff,2\nc,3\n", "not Unicode"),
}


@pytest.fixture
def only(folder):
    """A data set of one file: call with its name and content."""
    for path in folder.glob("*.parquet"):
        path.unlink()

    def write(name, content):
        (folder / name).write_bytes(content)
        return str(folder)

    return write


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_row_that_datasets_cannot_parse_is_set_aside(only, name, rows):
    content, reason = MALFORMED[name]
    corpus = HubCorpus(kind="hub", name=only(f"train-{name}", content), rows=rows)
    documents, rejects = read(corpus)
    assert [row["text"] for row in documents] == ["a", "c"]
    assert [(row["source"], row["ordinal"], row["reason"]) for row in rejects] == [
        ("sample/train", 1, reason)
    ]


@pytest.mark.parametrize("rows", [None, 1000])
def test_what_datasets_read_before_a_malformed_row_is_not_read_twice(only, rows):
    """It parses 10 MB at a time."""
    lines = [f'{{"text": "{number} {"x" * 100_000}"}}' for number in range(300)]
    name = only("train.jsonl", "\n".join([*lines[:250], "{broken", *lines[251:]]).encode())
    documents, rejects = read(HubCorpus(kind="hub", name=name, rows=rows))
    assert sorted(int(row["text"].split()[0]) for row in documents) == [*range(250), *range(251, 300)]
    assert [row["ordinal"] for row in rejects] == [250]


def test_a_malformed_row_is_no_line_of_the_document_that_it_lies_in(only):
    content = b'{"text": "= A ="}\n{broken\n{"text": "more"}\n{"text": "= B ="}\n'
    corpus = HubCorpus(kind="hub", name=only("train.jsonl", content), document_start="^= .* =$")
    documents, rejects = read(corpus)
    assert [row["text"] for row in documents] == ["= A =\nmore", "= B ="]
    assert [row["detail"][-7:] for row in rejects] == [", row 1"]


def test_a_quote_that_is_not_closed_takes_the_rest_with_it_and_says_which_lines(only):
    documents, rejects = read(HubCorpus(kind="hub", name=only("train.csv", b'text,n\na,1\n"b,2\nc,3\n')))
    assert [row["text"] for row in documents] == ["a"]
    assert [row["detail"] for row in rejects] == ["lines 3 to 4: unexpected end of data"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.json", b'[{"text": "a"},\n{"text": "b"}', "datasets cannot load it"),
        ("train.json", b'{"data":\n[{"text": "b"}]', "datasets cannot load it"),
        ("train.jsonl", b'{"txt": "a"}\n{broken\n', "no text_field 'text'; there are txt"),
        ("train.csv", b"txt,n\na,1\nb,2,3\n", "no text_field 'text'; there are txt, n"),
    ],
)
def test_a_file_without_any_text_is_an_error(only, name, content, said):
    with pytest.raises(UserError, match=said):
        read(HubCorpus(kind="hub", name=only(name, content)))
