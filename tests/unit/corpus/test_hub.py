"""Data sets read with `datasets`: local folders in its formats, and a name that cannot be loaded."""

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter

import datasets
import pyarrow as pa
import pytest

from bkray.config import UserError
from bkray.config.corpus import Cleaning, HubCorpus
from bkray.corpus import hub_files, list_shards, read_shard
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


def test_so_many_rows_of_the_splits_that_are_named(folder):
    """A pool of 300,000 rows needs no validation split of as many."""
    (folder / "test.parquet").rename(folder / "validation.parquet")
    whole, _ = read(HubCorpus(kind="hub", name=str(folder)))
    both = HubCorpus(kind="hub", name=str(folder), rows={"train": 200, "validation": 2})
    documents, _ = read(both)
    read_of = Counter(row["source"].rsplit("/")[-1] for row in documents)
    assert read_of == {"train": 199, "validation": 2}, "a row of train is null"
    assert {row["split"] for row in documents} == {"train", "validation", "test"}
    assert {row["doc_id"] for row in documents} < {row["doc_id"] for row in whole}
    documents, _ = read(HubCorpus(kind="hub", name=str(folder), rows={"train": 50}))
    assert {row["source"] for row in documents} == {"sample/train"}
    with pytest.raises(UserError, match=r"corpus\.rows: .* no split trian; it has train, validation"):
        list_shards(HubCorpus(kind="hub", name=str(folder), rows={"trian": 5}))
    with pytest.raises(UserError, match=r"corpus\.rows: no split is named; there are train, validation"):
        list_shards(HubCorpus(kind="hub", name=str(folder), rows={}))


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
    message = run.stderr.rsplit("UserError:", 1)[1]
    for part in ("'nobody/nothing'", "'raw'", "network", "corpus={kind: text, path: ...}"):
        assert part in message


MALFORMED = {
    "broken.jsonl": (b'{"text": "a"}\n{broken\n\n{"text": "c"}\n', "malformed JSON"),
    "of several types.jsonl": (b'{"text": "a"}\n{"text": 5}\n{"text": "c"}\n', "text is not a string"),
    "no object.jsonl": (b'{"text": "a"}\n[1]\n{"text": "c"}\n', "malformed JSON"),
    "no UTF-8.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n', "not UTF-8"),
    "no UTF-8.txt": (b"a\n\xff\nc\n", "not UTF-8"),
    "too many cells.csv": (b"n,text\n1,a\n2,b,3\n\n3,c\n", "malformed CSV"),
    "too few cells.csv": (b"n,text\n1,a\n2\n\n3,c\n", "text is not a string"),
    "too many cells.tsv": (b"n\ttext\n1\ta\n2\tb\t3\n3\tc\n", "malformed CSV"),
    "stray quote.csv": (b'text\na\n"b"b\nc\n', "malformed CSV"),
    "no UTF-8.csv": (b"text,n\na,1\n\xff,2\nc,3\n", "not Unicode"),
}
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}


@pytest.fixture
def only(folder):
    """A data set of these files: call with the content of each by name."""
    for path in folder.glob("*.parquet"):
        path.unlink()

    def write(**files):
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return str(folder)

    return write


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_row_is_set_aside(only, name, rows):
    content, reason = MALFORMED[name]
    corpus = HubCorpus(kind="hub", name=only(**{f"train-{name}": content}), rows=rows)
    documents, rejects = read(corpus)
    assert [row["text"] for row in documents] == ["a", "c"]
    assert [(row["source"], row["ordinal"], row["reason"]) for row in rejects] == [
        ("sample/train", 1, reason)
    ]


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", ["no UTF-8.txt", "broken.jsonl", "too many cells.csv"])
def test_the_files_of_a_split_are_one_list_of_rows_whatever_they_are_packed_in(only, name, packed, rows):
    """The first ends without a line feed, and both begin with a byte order mark."""
    content = PACKED[packed](b"\xef\xbb\xbf" + MALFORMED[name][0].strip())
    kind = name[name.index(".") :]
    corpus = HubCorpus(
        kind="hub", name=only(**{f"train-{n}{kind}{packed}": content for n in (1, 2)}), rows=rows
    )
    documents, rejects = read(corpus)
    assert [row["text"] for row in documents] == (["a", "c", "a", "c"] if rows is None else ["a", "c"])
    assert [row["ordinal"] for row in rejects] == ([1, 4] if rows is None else [1])


def test_every_file_of_an_archive_is_read(only):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for text in "ab":
            members.writestr(f"{text}.jsonl", f'{{"text": "{text}"}}')
    documents, _ = read(HubCorpus(kind="hub", name=only(**{"train.zip": archive.getvalue()})))
    assert [row["text"] for row in documents] == ["a", "b"]


@pytest.mark.parametrize("rows", [None, 9])
def test_what_is_no_text_leaves_the_others_as_they_are(only, rows):
    """`datasets` writes all texts of such a column as JSON: quotes, backslashes and all."""
    files = {
        "train.jsonl": b'{"text": "a"}\n',
        "test.jsonl": b'{"text": "x"}\n{"text": 5}\n{"text": "y \\"q\\""}\n',
    }
    documents, rejects = read(HubCorpus(kind="hub", name=only(**files), rows=rows))
    assert [row["text"] for row in documents] == ["x", 'y "q"', "a"]
    assert [(row["source"], row["detail"]) for row in rejects] == [("sample/test", "'text' is 5")]


def test_a_malformed_row_is_no_line_of_the_document_that_it_lies_in(only):
    content = b'{"text": "= A ="}\n{broken\n{"text": "more"}\n{"text": "= B ="}\n'
    name = only(**{"train.jsonl": content})
    documents, rejects = read(HubCorpus(kind="hub", name=name, document_start="^= .* =$"))
    assert [row["text"] for row in documents] == ["= A =\nmore", "= B ="]
    assert [row["detail"][-7:] for row in rejects] == [", row 1"]


def test_a_quote_that_is_not_closed_takes_the_rest_with_it_and_says_which_lines(only, monkeypatch):
    name = only(**{"train.csv": b'text,n\na,1\n"b,2\nc,3\n'})
    documents, rejects = read(HubCorpus(kind="hub", name=name))
    assert [row["text"] for row in documents] == ["a"]
    assert [row["detail"] for row in rejects] == ["train.csv, lines 3 to 4: unexpected end of data"]
    monkeypatch.setattr(hub_files, "_CELL_CHARS", 5)
    with pytest.raises(UserError, match=r"train\.csv, lines 3 to 4: a quote that opens there is not closed"):
        read(HubCorpus(kind="hub", name=name))


def test_a_cell_of_many_lines_is_one_text_and_too_long_as_such(only):
    content = b'n,text\n1,a\n2,"' + b"long line\n" * 20 + b'end"\n"' + b"other\n" * 50 + b'",c\n'
    corpus = HubCorpus(kind="hub", name=only(**{"train.csv": content}))
    tables = [read_shard(shard, corpus, Cleaning(max_chars=100), 0) for shard in list_shards(corpus)]
    ((documents, rejects),) = (table for each in tables for table in each)
    assert documents["text"].to_pylist() == ["a", "c"]
    assert rejects["reason"].to_pylist() == ["too long"]


@pytest.mark.parametrize("rows", [None, 9])
@pytest.mark.parametrize(
    ("name", "before", "after", "bytes_held"),
    [
        ("train.txt", b"first\n", b"\nlast", 40e6),
        ("train.jsonl", b'{"text": "first"}\n{"text": "', b'"}\n{"text": "last"}', 40e6),
        ("train.csv", b'text\nfirst\n"', b'"\nlast', 900e6),
    ],
)
def test_a_line_of_100_mb(only, name, before, after, bytes_held, rows):
    """Of CSV it is held, at four bytes a character and more: other lines of the cell may follow."""
    corpus = HubCorpus(kind="hub", name=only(**{name: before + b"x" * 100_000_000 + after}), rows=rows)
    tracemalloc.start()
    try:
        documents, (reject,) = read(corpus)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row["text"] for row in documents] == ["first", "last"]
    assert reject["reason"] == "too long"
    assert peak < bytes_held


@pytest.mark.parametrize("rows", [None, 500])
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.json": b'[{"text": "a"},\n{"text": "b"}'}, "datasets cannot load it"),
        ({"train.jsonl": b'{"txt": "a"}\n{broken\n'}, "no text_field 'text'; there are txt"),
        ({"train.csv": b"txt,n\na,1\nb,2,3\n"}, "no text_field 'text'; there are txt, n"),
        (
            {"train-1.csv": b"text\na\n", "train-2.csv": b"txt,n\na,1\n"},
            "no text_field 'text'; there are txt, n",
        ),
        ({"train.csv.gz": gzip.compress(b"text\na\n" * 99)[:-9]}, r"train\.csv\.gz: cannot be read"),
        (
            {"train.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 99)[:-9]},
            r"train\.jsonl\.gz: cannot be read",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(only, files, said, rows):
    with pytest.raises(UserError, match=said):
        read(HubCorpus(kind="hub", name=only(**files), rows=rows))


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("train.csv", b"text\n\xe4\nb\n", "encoding: latin-1"),
        ("train.txt", b"\xe4\nb\n", "encoding: latin-1"),
        ("train.csv", b"n  text\n1    \xc3\xa4\n2 b\n", "sep: '\\s+'"),
        ("train.csv", b"of 2026\ntext\n\xc3\xa4\nb\n", "skiprows: 1"),
        ("train.json", b'{"data": [{"text": "\xc3\xa4"}, {"text": "b"}]}', "field: data"),
        ("train.json", b'[{"text": "\xc3\xa4"}, {"text": "b"}]', ""),
    ],
)
def test_what_is_read_otherwise_is_left_to_datasets(only, folder, name, content, settings):
    extra = f", {settings}" if settings else ""
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- {{config_name: it, data_files: {name}{extra}}}\n---\n"
    )
    documents, rejects = read(HubCorpus(kind="hub", name=only(**{name: content}), config="it"))
    assert ([row["text"] for row in documents], rejects) == (["ä", "b"], [])
