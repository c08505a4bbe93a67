"""Windows as arrays: what training and evaluation read from a finished artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

_ROWS = 16  # read at once: texts may have a megabyte each


def read_columns(parts: Sequence[Path], columns: Sequence[str], split: str | None = None) -> pa.Table:
    """The named columns of all `parts` in order, restricted to one split where it is named."""
    keep = pc.field("split") == split if split else None
    return _dataset(parts).scanner(columns=list(columns), filter=keep).to_table()


def read_rows(parts: Sequence[Path], columns: Sequence[str], split: str) -> Iterator[pa.Table]:
    """The named columns of one split in order, a few rows at a time; of a part little more is held.

    Parts without a row of the split are not read.
    """
    keep = pc.field("split") == split
    for fragment in _dataset(parts).get_fragments():
        if fragment.subset(keep).row_groups:
            with pq.ParquetFile(fragment.path) as part:
                for batch in part.iter_batches(_ROWS, columns=[*columns, "split"], use_threads=False):
                    yield pa.table(batch).filter(keep).select(list(columns))


def first_rows(parts: Sequence[Path], columns: Sequence[str], split: str, count: int) -> pa.Table:
    """The first `count` rows of a split, or fewer where there are no more; the rest is not held."""
    found, rows = [_dataset(parts).schema.empty_table().select(list(columns))], 0
    for table in read_rows(parts, columns, split):
        found.append(table)
        rows += table.num_rows
        if rows >= count:
            break
    return pa.concat_tables(found).slice(0, count)


def count_values(parts: Sequence[Path], column: str) -> Counter[str]:
    """How often each value of a column occurs in all `parts`; some rows of it are held at a time."""
    counts: Counter[str] = Counter()
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=[column]):
                found = pc.value_counts(batch[column])
                counts.update({row["values"]: row["counts"] for row in found.to_pylist()})
    return counts


def _dataset(parts: Sequence[Path]) -> pads.Dataset:
    return pads.dataset([str(part) for part in parts], format="parquet")


def tokens_array(table: pa.Table) -> np.ndarray:
    """Column `tokens` as int32 (W, N + 1)."""
    return _lists(table, "tokens", np.int32)


def embedding_array(table: pa.Table) -> np.ndarray:
    """Column `embedding` as float16 (W, D)."""
    return _lists(table, "embedding", np.float16)


def _lists(table: pa.Table, name: str, dtype: type[np.generic]) -> np.ndarray:
    column = table.column(name)
    width = column.type.list_size
    chunks = [
        np.asarray(chunk.flatten(), dtype=dtype).reshape(-1, width) for chunk in column.chunks if len(chunk)
    ]
    return np.concatenate(chunks) if chunks else np.empty((0, width), dtype=dtype)
