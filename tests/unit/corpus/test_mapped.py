import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.corpus import mapped
from bkray.corpus.mapped import JoinedWindows, map_windows
from bkray.corpus.schema import soft_targets_fields
from bkray.corpus.windows import first_rows, read_columns, read_rows, tokens_array


def write_parts(folder, sizes, width=9):
    """Parts of random windows; returns their paths and all windows."""
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 1000, (sum(sizes), width)).astype(np.int32)
    parts, start = [], 0
    for number, size in enumerate(sizes):
        rows = windows[start : start + size]
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width)
        splits = ["validation" if position % 3 == 0 else "train" for position in range(size)]
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(pa.table({"split": splits, "tokens": tokens}), path)
        parts.append(path)
        start += size
    return parts, windows


def test_rows_are_those_of_the_parts_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_BATCH_ROWS", 7)
    parts, windows = write_parts(tmp_path, [20, 1, 14, 33])
    there = map_windows(parts)
    assert len(there) == 68
    assert np.array_equal(there[np.arange(68)], windows)
    some = np.random.default_rng(1).integers(0, 68, 200)
    assert np.array_equal(there[some], windows[some])
    assert there[some].dtype == np.int32
    assert there[some[:0]].shape == (0, 9)
    taken = there[np.array([3])]
    taken[:] = 0
    assert there[np.array([3])].any(), "what is given out is a copy"
    for beyond in (-1, 68):
        with pytest.raises(IndexError, match="of 68 windows"):
            there[np.array([beyond])]


def test_each_column_is_a_file_of_its_own_in_its_own_type(tmp_path):
    fields, rows = soft_targets_fields(3, 2, 40), np.arange(5 * 6)
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(field.type.value_type.to_pandas_dtype())), 6)
        for field in fields
    ]
    part = tmp_path / "part-00000.parquet"
    pq.write_table(pa.Table.from_arrays(lists, schema=pa.schema(fields)), part)
    for field, dtype in zip(fields, (np.uint16, np.float16), strict=True):
        read = map_windows([part], field.name)[np.array([4, 0])]
        assert read.dtype == dtype
        assert np.array_equal(read, rows.reshape(5, 6)[[4, 0]])
    assert soft_targets_fields(3, 2, 1 + (1 << 16))[0].type.value_type == pa.int32()
    assert sorted(os.listdir(tmp_path)) == [part.name, "soft_ids.arrow", "soft_log_probs.arrow"]


def test_it_is_written_once_however_many_want_it(tmp_path, monkeypatch):
    parts, windows = write_parts(tmp_path, [50])
    written, write = [], mapped._write
    monkeypatch.setattr(mapped, "_write", lambda *given: (written.append(1), write(*given)))
    with ThreadPoolExecutor(4) as pool:
        for there in pool.map(lambda _: map_windows(parts), range(8)):
            assert np.array_equal(there[np.arange(50)], windows)
    assert len(written) == 1


def test_what_a_kill_left_is_written_anew(tmp_path):
    parts, windows = write_parts(tmp_path, [50])
    map_windows(parts)
    whole = (tmp_path / "tokens.arrow").read_bytes()
    (tmp_path / "tokens.arrow").unlink()
    (tmp_path / ".partial-tokens.arrow").write_bytes(whole[:100])
    assert np.array_equal(map_windows(parts)[np.arange(50)], windows)
    (tmp_path / "tokens.arrow").write_bytes(whole[: len(whole) // 2])
    assert np.array_equal(map_windows(parts)[np.arange(50)], windows)
    assert (tmp_path / "tokens.arrow").read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["part-00000.parquet", "tokens.arrow"]


def test_reading_some_rows_holds_no_others(tmp_path):
    parts, windows = write_parts(tmp_path, [4000] * 4, width=1025)
    map_windows(parts)
    before = anonymous_bytes()
    there = map_windows(parts)
    assert np.array_equal(there[np.arange(0, 16_000, 100)], windows[::100])
    assert anonymous_bytes() - before < windows.nbytes / 8


def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_the_first_rows_of_a_split_are_those_of_the_whole(tmp_path):
    parts, _ = write_parts(tmp_path, [20, 30])
    whole = tokens_array(read_columns(parts, ["tokens"], "validation"))
    for count in (1, 9, 1000):
        assert np.array_equal(tokens_array(first_rows(parts, ["tokens"], "validation", count)), whole[:count])


def test_parts_without_a_row_of_the_split_are_not_read(tmp_path, monkeypatch):
    texts = {"test": ["a"], "train": ["b"] * 40, "validation": ["c", "d"]}
    parts = [tmp_path / f"{split}.parquet" for split in texts]
    for part, (split, column) in zip(parts, texts.items(), strict=True):
        pq.write_table(pa.table({"split": [split] * len(column), "text": column}), part)
    opened, usual = [], pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path: opened.append(Path(path)) or usual(path))
    for part, (split, column) in zip(parts, texts.items(), strict=True):
        assert [
            row for table in read_rows(parts, ["text"], split) for row in table["text"].to_pylist()
        ] == column
        assert opened.pop() == part
    assert first_rows(parts, ["text"], "other", 5).num_rows == 0
    assert opened == []


def test_two_sources_are_read_as_one(tmp_path):
    read = []
    for name, sizes in (("one", [5, 3]), ("two", [6])):
        (tmp_path / name).mkdir()
        read.append(map_windows(write_parts(tmp_path / name, sizes)[0]))
    joined, both = JoinedWindows(*read), np.concatenate([one[np.arange(len(one))] for one in read])
    assert len(joined) == 14
    for listed in ([13, 0, 7, 8, 8], [2, 1], [9], []):
        positions = np.array(listed, dtype=np.int64)
        np.testing.assert_array_equal(joined[positions], both[positions])
    for position in (14, -1):
        with pytest.raises(IndexError):
            joined[np.array([position])]
