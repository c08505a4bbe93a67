"""Windows as arrays: what training and evaluation read from a finished artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads


def read_columns(parts: Sequence[Path], columns: Sequence[str], split: str | None = None) -> pa.Table:
    """The named columns of all `parts` in order, restricted to one split where it is named."""
    return _scanner(parts, columns, split).to_table()


def first_rows(parts: Sequence[Path], columns: Sequence[str], split: str, count: int) -> pa.Table:
    """The first `count` rows of a split, or fewer where there are no more; the rest is not held."""
    return _scanner(parts, columns, split).head(count)


def _scanner(parts: Sequence[Path], columns: Sequence[str], split: str | None) -> pads.Scanner:
    keep = pc.field("split") == split if split else None
    dataset = pads.dataset([str(part) for part in parts], format="parquet")
    return dataset.scanner(columns=list(columns), filter=keep)


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
