"""A column of windows as one memory-mapped Arrow file: rows are read by their positions, nothing is held.

part-*.parquet ─► tokens.arrow, written once, in bounded memory ─► MappedWindows[positions] ─► (B, N + 1)
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_BATCH_ROWS = 1024


class MappedWindows:
    """The one column of an Arrow file, lists of a fixed length, as rows; what is read lies in the page cache.

    Rows of `tokens` are (N + 1,) int32.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, or pyarrow.ArrowInvalid where the file is not a whole one."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        kind = reader.schema.field(0).type
        width, self._dtype = kind.list_size, kind.value_type.to_pandas_dtype()
        columns = (reader.get_batch(number)[0] for number in range(reader.num_record_batches))
        self._batches = [column.flatten().to_numpy().reshape(-1, width) for column in columns]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self._width = width

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The rows (B, width) at `positions` (B,), a copy; IndexError where there is none."""
        positions = np.asarray(positions)
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {len(self)} windows")
        rows = np.empty((len(positions), self._width), dtype=self._dtype)
        batches = np.searchsorted(self._starts, positions, side="right") - 1
        for row, (batch, position) in enumerate(zip(batches, positions, strict=True)):
            rows[row] = self._batches[batch][position - self._starts[batch]]
        return rows


class JoinedWindows:
    """The windows of two sources as one: the positions of `second` follow those of `first`."""

    def __init__(self, first: MappedWindows, second: MappedWindows) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Windows (B, N + 1) int32 at `positions` (B,), a copy; IndexError where there is none."""
        positions = np.asarray(positions)
        later = positions >= len(self._first)
        read = self._first[positions[~later]], self._second[positions[later] - len(self._first)]
        tokens = np.empty((len(positions), read[0].shape[1]), dtype=np.int32)
        tokens[~later], tokens[later] = read
        return tokens


def map_windows(parts: Sequence[Path], column: str = "tokens") -> MappedWindows:
    """The rows of `column` of `parts` in order, through a file beside them that the first caller writes.

    Others who want it meanwhile wait. A kill leaves no file or a whole one; one that is not whole is written
    again.
    """
    path = parts[0].parent / f"{column}.arrow"
    with _alone_in(path.parent):
        try:
            return MappedWindows(path)
        except (FileNotFoundError, pa.ArrowInvalid):
            _write(parts, path)
    return MappedWindows(path)


def _write(parts: Sequence[Path], path: Path) -> None:
    partial = path.with_name(f".partial-{path.name}")
    column = path.stem
    schema = pa.schema([pq.read_schema(parts[0]).field(column)])
    with open(partial, "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for part in parts:
                for batch in pq.ParquetFile(part).iter_batches(_BATCH_ROWS, columns=[column]):
                    writer.write_batch(batch.cast(schema))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No second process that asks for the same folder is in the block at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
