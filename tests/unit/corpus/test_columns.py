"""Parquet files: what is read of them, what is rejected, how much is held."""

import base64
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import UserError
from bkray.config.corpus import Cleaning, JsonlCorpus, ParquetCorpus
from bkray.corpus import list_shards, read_shard

CORPORA = {"jsonl": JsonlCorpus, "parquet": ParquetCorpus}


def parquet(path, **options):
    return ParquetCorpus(kind="parquet", path=str(path), **options)


def read(corpus, max_chars=1_000_000):
    """All documents and rejects of a corpus as rows."""
    documents, rejects = [], []
    for shard in list_shards(corpus):
        for kept, rejected in read_shard(shard, corpus, Cleaning(max_chars=max_chars), 0):
            documents += kept.to_pylist()
            rejects += rejected.to_pylist()
    return documents, rejects


def test_parquet_reads_every_kind_of_text_column(tmp_path):
    values = ["a ", None, "", "ü", "long" * 50]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()):
        pq.write_table(
            pa.table({"text": pa.array(values).cast(kind)}), tmp_path / "a.parquet", row_group_size=2
        )
        documents, rejects = read(parquet(tmp_path), max_chars=100)
        assert [row["text"] for row in documents] == ["a", "ü"]
        assert [(row["ordinal"], row["reason"]) for row in rejects] == [
            (1, "text is not a string"),
            (4, "too long"),
        ]


def test_a_small_parquet_file_of_gigabytes_of_text_is_read_a_row_at_a_time(tmp_path):
    """One value of 20 MB that 64 rows have: a few kilobytes, 1.3 GB of text."""
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array(["x" * 20_000_000]))
    pq.write_table(pa.table({"text": bomb}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    rejects, megabytes = read_elsewhere(tmp_path)
    assert rejects == 64
    assert megabytes < 300


def test_of_a_large_row_group_of_long_texts_a_page_is_held(tmp_path):
    """150 texts of 1 MB, each in a page of its own."""
    texts = pa.array([base64.b64encode(os.urandom(750_006)) for _ in range(150)])
    options = {"use_dictionary": False, "compression": "none", "write_batch_size": 1}
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", **options)
    rejects, megabytes = read_elsewhere(tmp_path)
    assert rejects == 150
    assert megabytes < 75


def read_elsewhere(folder):
    """Rejects of the Parquet files of a folder, and by how many megabytes a process grows that reads them."""
    code = """if True:
        import sys
        from bkray.config.corpus import Cleaning, ParquetCorpus
        from bkray.corpus import list_shards, read_shard

        def peak():
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            return int(status["VmHWM"].split()[0]) * 1024

        corpus = ParquetCorpus(kind="parquet", path=sys.argv[1])
        (shard,), before = list_shards(corpus), peak()
        rejects = sum(rejects.num_rows for _, rejects in read_shard(shard, corpus, Cleaning(), 0))
        print(rejects, (peak() - before) // 1_000_000)
    """
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


def test_parquet_cell_that_is_not_utf8_rejects_only_its_row(tmp_path):
    column = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    documents, rejects = read(parquet(tmp_path))
    assert [row["text"] for row in documents] == ["a", "c"]
    assert [(row["ordinal"], row["reason"]) for row in rejects] == [(1, "not UTF-8")]


def test_wrong_parquet_column_names_the_columns(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: no text_field 'bodi'; there are body, n; did you mean"):
        read(parquet(tmp_path, text_field="bodi"))
    with pytest.raises(UserError, match=r"'n' holds int64, not text; columns with text: body"):
        read(parquet(tmp_path, text_field="n"))
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(parquet(tmp_path))


@pytest.mark.parametrize(
    ("asked", "row", "hint"),
    [
        ("text", {"review": "good", "label": 3}, "review"),
        ("text", {"teksts": "words", "test": 3, "id": "7"}, "teksts"),
        ("TITLE", {"Title": "words", "tale": "words"}, "Title"),
        ("text", {"review": "good", "id": "7"}, None),
        ("text", {"test": 3, "number": None}, None),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_field_suggests_one_that_holds_text(tmp_path, kind, asked, row, hint):
    """The nearest in spelling, whatever its case, else the only one."""
    write_row(tmp_path / f"a.{kind}", row)
    end = rf"; did you mean text_field: {hint}\?" if hint else ""
    with pytest.raises(UserError, match=rf"no text_field '{asked}'; there are {', '.join(row)}{end}$"):
        read(CORPORA[kind](kind=kind, path=str(tmp_path), text_field=asked))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_of_many_fields_the_first_are_named(tmp_path, kind):
    write_row(tmp_path / f"a.{kind}", {"n" * 10_000: 0, **{f"n{i}": i for i in range(1999)}, "words": "a"})
    with pytest.raises(UserError, match=r"n1, .*, n18, … and 1,981 more; did you mean .*words\?$") as error:
        read(CORPORA[kind](kind=kind, path=str(tmp_path)))
    assert len(str(error.value)) < 300


def test_a_field_holds_text_where_any_row_has_text_in_it(tmp_path):
    lines = ['{"body": null, "n": 1}', '{"body": "words", "n": 2}', '{"body": null, "n": 3}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"there are body, n; did you mean text_field: body\?"):
        read(JsonlCorpus(kind="jsonl", path=str(tmp_path)))


def write_row(path, row):
    """A file of one row, of the kind that its name says."""
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
