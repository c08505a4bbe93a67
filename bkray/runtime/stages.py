"""Ray Data building blocks: datasets in, datasets or finished part files out.

    read_parts ─► map_batches … ─► write_parts: globally sorted by unique keys, so many rows or bytes a file

Rows are sorted by their own ids and cut where their number or bytes make a part, so the files are the same
bytes whatever blocks, batches and CPUs they came from. Nothing is pulled to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, Dataset

from bkray.runtime.cluster import TASK_CPUS
from bkray.selection import sort_keys, taken, thresholds
from bkray.selection.threshold import BINS, Prefix, matches

ROWS_PER_PART, BYTES_PER_PART = 4096, 64 << 20  # one worker holds a part several times while it writes it
_SORTED_BLOCKS, _BLOCK_BYTES = 8, 64 << 20  # a sort merges more blocks than so many, up to so large
_BLOCK_WINDOWS = 128  # a task: small enough to share them evenly, the last ones too
_BLOCK_FLOPS = 1e11  # a task on one core: seconds, half a minute on a slow one
_GPU_SPEED = 100  # how much more a GPU gets


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
    """A pool of an actor a CPU, but of no more actors than there are blocks to work on.

    Nor of so many that no machine has a whole CPU left, which Ray Data's own tasks ask for: one of c CPUs has
    none beside 2c - 1 actors of `TASK_CPUS`. It matters where all machines have one CPU.
    """
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    beside = sum(2 * own - 1 for own in machines if own) - 1
    return ActorPoolStrategy(size=max(1, min(cpus, beside, -(-rows // rows_per_block))))


def windows_a_block(flops: float, gpus: int = 0, together: int = 1) -> int:
    """Windows of a block that models pass over, `flops` each: a stage that ends no block is given up.

    A multiple of `together`, the windows of one pass, which a smaller block would not fill.
    """
    most = _BLOCK_FLOPS * (_GPU_SPEED if gpus else 1)
    windows = min(_BLOCK_WINDOWS, int(most // max(1.0, flops)))
    return together * max(1, windows // together)


def in_worker(function: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
    """Start a call in a worker: what runs a model belongs there, where its imports are done already."""
    return _call.remote(function, *arguments)


@ray.remote(num_cpus=TASK_CPUS)
def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _OfSplit:
    """Keeps the rows of one split."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.equal(table["split"], self.split))


def top_k(dataset: Dataset, column: str, k: int, id_column: str = "window_id") -> Dataset:
    """Exactly the k rows with the largest `column` (float32), ties broken by the lower id, in any order.

    Nothing is sorted or exchanged: histograms of the blocks add up to the threshold, mostly two passes over
    both columns, and then every block keeps its own rows. Raises ValueError for fewer than k rows.
    """
    found = threshold_each(dataset.select_columns([column, id_column]), column, {0: k}, None, id_column)
    return take_each(dataset, column, found, None, id_column)


def threshold_each(
    dataset: Dataset,
    column: str,
    wanted: Mapping[int, int],
    group_column: str | None,
    id_column: str = "window_id",
) -> dict[int, Prefix]:
    """The thresholds that take so many rows of each group (int32), by the largest `column` and the lower id.

    Without a column of groups all rows are group 0. `dataset` goes to the object store: give these columns.
    """
    blocks, names = blocks_of(dataset), (column, id_column, group_column)
    return thresholds(lambda prefixes: _histograms(blocks, names, prefixes), wanted)


def take_each(
    dataset: Dataset,
    column: str,
    found: dict[int, Prefix],
    group_column: str | None,
    id_column: str = "window_id",
) -> Dataset:
    """The rows that do not come after the threshold of their group; none of a group without one."""
    return map_tables(dataset, _Take((column, id_column, group_column), found), TASK_CPUS, batch_size=None)


_Names = tuple[str, str, str | None]  # the columns of score, id and group


def _histograms(blocks: list[Any], names: _Names, prefixes: Mapping[int, Prefix]) -> dict[int, np.ndarray]:
    """Of every group the histogram of the digit after its prefix: the sum over the blocks."""
    totals = {group: np.zeros(BINS, dtype=np.int64) for group in prefixes}
    for counting in [_count_digits.remote(block, names, dict(prefixes)) for block in blocks]:
        for group, (bins, counts) in ray.get(counting).items():
            totals[group][bins] += counts
    return totals


@ray.remote(num_cpus=TASK_CPUS)
def _count_digits(
    block: pa.Table, names: _Names, prefixes: dict[int, Prefix]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of every group the bins of its histogram that are not empty, and their counts."""
    keys, groups = _keys_and_groups(block, names)
    found = {}
    for group, prefix in prefixes.items():
        digits = keys[(groups == group) & matches(keys, prefix), len(prefix)]
        found[group] = np.unique(digits, return_counts=True)
    return found


class _Take:
    """Keeps the rows of a block that do not come after the threshold of their group."""

    def __init__(self, names: _Names, found: dict[int, Prefix]) -> None:
        self.names, self.found = names, found

    def __call__(self, table: pa.Table) -> pa.Table:
        keys, groups = _keys_and_groups(table, self.names)
        kept = np.zeros(len(keys), dtype=bool)
        for group, prefix in self.found.items():
            kept |= (groups == group) & taken(keys, prefix)
        return table.filter(pa.array(kept))


def _keys_and_groups(table: pa.Table, names: _Names) -> tuple[np.ndarray, np.ndarray]:
    column, id_column, group_column = names
    keys = sort_keys(table[column].to_numpy(), table[id_column].to_numpy())
    groups = table[group_column].to_numpy() if group_column else np.zeros(len(keys), dtype=np.int32)
    return keys, groups


def write_parts(
    dataset: Dataset,
    directory: Path,
    schema: pa.Schema,
    keys: Sequence[str],
    rows_per_part: int = ROWS_PER_PART,
    bytes_per_part: int = BYTES_PER_PART,
) -> int:
    """Sort by `keys` (unique together) into parts under `schema`; return the rows.

    A part has `rows_per_part` rows; fewer, but one, where their texts would take more than `bytes_per_part`.
    """
    dataset = dataset.materialize()
    rows = dataset.count()
    if rows == 0:
        _write_table(pa.table({field.name: [] for field in schema}), directory, 0, schema)
        return 0
    ordered = merged(dataset).sort(list(keys)).materialize()
    cuts = _cuts(blocks_of(ordered), schema, rows_per_part, bytes_per_part)
    pieces = ordered.split_at_indices(cuts) if cuts else [ordered]
    ray.get(
        [
            _write_blocks.remote(str(directory), number, schema, *blocks_of(piece))
            for number, piece in enumerate(pieces)
        ]
    )
    return rows


def merged(dataset: Dataset) -> Dataset:
    """The rows of a materialized dataset in fewer blocks where there are many small ones.

    Ray reads a small table in up to 200. A sort, and so a `groupby`, cuts each into as many pieces as there
    are blocks; the driver holds those below 100 kB, and some kB for each of the others: 300 MB for a table of
    60 MB.
    """
    most = max(_SORTED_BLOCKS, -(-dataset.size_bytes() // _BLOCK_BYTES))
    return dataset.repartition(most) if dataset.num_blocks() > most else dataset


def _cuts(blocks: list[Any], schema: pa.Schema, most_rows: int, most_bytes: int) -> list[int]:
    """The rows with which a part begins, but for the first: every block goes on with the part before it."""
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    cuts, before, begun = [], 0, (0, 0)
    for block in blocks:
        found, rows, begun = ray.get(_cut.remote(block, texts, begun, most_rows, most_bytes))
        cuts += [before + at for at in found]
        before += rows
    return cuts


@ray.remote(num_cpus=TASK_CPUS)
def _cut(
    block: pa.Table, texts: list[str], begun: tuple[int, int], most_rows: int, most_bytes: int
) -> tuple[list[int], int, tuple[int, int]]:
    """The rows of a block with which a part begins, its rows, and rows and bytes of the part left open.

    `begun` are rows and bytes of the part that the blocks before have left open.
    """
    rows = len(block)
    lengths = np.zeros(rows, dtype=np.int64)
    for name in texts:
        lengths += pc.fill_null(pc.binary_length(block[name]), 0).to_numpy()
    ends, cuts = np.cumsum(lengths), []
    first, held = -begun[0], -begun[1]  # the row with which the part begins, the bytes before it
    while (at := _part_end(ends, first, held, most_rows, most_bytes)) < rows:
        cuts.append(at)
        first, held = at, int(ends[at - 1]) if at else 0
    return cuts, rows, (rows - first, int(ends[-1]) - held)


def _part_end(ends: np.ndarray, first: int, held: int, most_rows: int, most_bytes: int) -> int:
    """The row after the last of the part from `first`; `ends` are the bytes up to and with each row."""
    fits = int(np.searchsorted(ends, held + most_bytes, side="right"))
    return max(min(first + most_rows, fits), first + 1)


def blocks_of(dataset: Dataset) -> list[Any]:
    """References to the blocks with rows of a dataset, which is computed where it is not yet.

    Ray leaves an empty block without the columns that a function would have added.
    """
    bundles = dataset.iter_internal_ref_bundles()
    return [block.ref for bundle in bundles for block in bundle.blocks if block.metadata.num_rows]


@ray.remote(num_cpus=TASK_CPUS)
def _write_blocks(directory: str, number: int, schema: pa.Schema, *blocks: pa.Table) -> None:
    table = pa.concat_tables([block.select(schema.names) for block in blocks], promote_options="permissive")
    _write_table(table, Path(directory), number, schema)


def _write_table(table: pa.Table, directory: Path, number: int, schema: pa.Schema) -> None:
    table = table.select(schema.names).cast(schema).replace_schema_metadata(None).combine_chunks()
    pq.write_table(table, directory / f"part-{number:05d}.parquet", compression="zstd")


def bucket_of(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket (int32) of each 63-bit hash: rows with one hash share one bucket."""
    return (hashes % buckets).astype(np.int32)
