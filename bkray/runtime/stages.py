"""Ray Data building blocks: datasets in, datasets or finished part files out.

    read_parts ─► map_batches … ─► write_parts: globally sorted by unique keys, a fixed number of rows a file

Rows are sorted by their own ids and cut at fixed positions, so the files are the same bytes whatever blocks,
batches and CPUs they came from. Nothing is pulled to the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, Dataset

from bkray.runtime.cluster import TASK_CPUS

ROWS_PER_PART = 4096


def read_parts(parts: Sequence[Path], split: str | None = None) -> Dataset:
    """The rows of an artifact's part files, restricted to one split where it is named."""
    dataset = ray.data.read_parquet([str(part) for part in parts], num_cpus=TASK_CPUS)
    if split is None:
        return dataset
    return map_tables(dataset, _OfSplit(split), TASK_CPUS)


def map_tables(dataset: Dataset, function: Any, num_cpus: float = 1, **options: Any) -> Dataset:
    """`map_batches` of a function of Arrow tables."""
    return dataset.map_batches(function, batch_format="pyarrow", num_cpus=num_cpus, **options)


def actors(cpus: int, rows: int, rows_per_block: int) -> ActorPoolStrategy:
    """A pool of an actor a CPU, but of no more actors than there are blocks to work on."""
    return ActorPoolStrategy(size=max(1, min(cpus, -(-rows // rows_per_block))))


class _OfSplit:
    """Keeps the rows of one split."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.equal(table["split"], self.split))


def top_k(dataset: Dataset, column: str, k: int, id_column: str = "window_id") -> Dataset:
    """The k rows with the largest `column`, ties broken by the lower id; the result is sorted that way.

    Every block first keeps its own k largest, so that no more than k rows a block are exchanged.
    """
    order = [(column, "descending"), (id_column, "ascending")]
    largest = map_tables(dataset, _Largest(order, k), batch_size=None)
    return largest.sort([column, id_column], descending=[True, False]).limit(k)


class _Largest:
    """Keeps the first k rows of a block in the given order."""

    def __init__(self, order: list[tuple[str, str]], k: int) -> None:
        self.order, self.k = order, k

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.take(pc.select_k_unstable(table, k=min(self.k, table.num_rows), sort_keys=self.order))


def write_parts(
    dataset: Dataset,
    directory: Path,
    schema: pa.Schema,
    keys: Sequence[str],
    rows_per_part: int = ROWS_PER_PART,
) -> int:
    """Sort by `keys` (unique together) into parts of `rows_per_part` rows under `schema`; return the rows."""
    dataset = dataset.materialize()
    rows = dataset.count()
    if rows == 0:
        _write_table(pa.table({field.name: [] for field in schema}), directory, 0, schema)
        return 0
    ordered = dataset.sort(list(keys)).materialize()
    pieces = (
        ordered.split_at_indices(list(range(rows_per_part, rows, rows_per_part)))
        if rows > rows_per_part
        else [ordered]
    )
    ray.get(
        [
            _write_blocks.remote(str(directory), number, schema, *blocks_of(piece))
            for number, piece in enumerate(pieces)
        ]
    )
    return rows


def blocks_of(dataset: Dataset) -> list[Any]:
    """References to the blocks of a dataset, for tasks that take all of them."""
    return [ref for bundle in dataset.iter_internal_ref_bundles() for ref in bundle.block_refs]


@ray.remote(num_cpus=TASK_CPUS)
def _write_blocks(directory: str, number: int, schema: pa.Schema, *blocks: pa.Table) -> None:
    filled = [block for block in blocks if block.num_rows]
    _write_table(
        pa.concat_tables([block.select(schema.names) for block in filled], promote_options="permissive"),
        Path(directory),
        number,
        schema,
    )


def _write_table(table: pa.Table, directory: Path, number: int, schema: pa.Schema) -> None:
    table = table.select(schema.names).cast(schema).replace_schema_metadata(None).combine_chunks()
    pq.write_table(table, directory / f"part-{number:05d}.parquet", compression="zstd")


def bucket_of(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket (int32) of each 63-bit hash: rows with one hash share one bucket."""
    return (hashes % buckets).astype(np.int32)
