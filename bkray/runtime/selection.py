"""The selection stage: the most uncertain windows of all, or of every cluster of similar ones.

    scored ─► threshold by histograms ─► selected
       └─► clusters of a sample ─► sizes ─► quotas ─► a threshold a cluster ─► selected

This module imports no torch before it has to, so that the workers of the stage start in a second.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from bkray.config import UserError
from bkray.config.preparation import Diversity, Selection
from bkray.corpus.windows import embedding_array, first_rows
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.stages import (
    blocks_of,
    map_tables,
    read_parts,
    take_each,
    threshold_each,
    top_k,
    write_parts,
)
from bkray.runtime.work import Outcome, Work
from bkray.selection import Clusters, quotas
from bkray.selection.diversity import ROUNDS


def selected(work: Work) -> Outcome:
    """Keep the share of windows that is most uncertain: exactly round(keep x rows), ties by id."""
    from bkray.training import Ledger  # late: it imports torch

    settings, before = work.recipe.selection, work.source.rows
    assert settings
    keep = kept_of(settings, before)
    ledger = Ledger()
    details: dict[str, Any] = {}
    if settings.diversity:
        kept, flops, details = _diverse(work, settings.diversity, keep)
        ledger.charge("clustering", flops=flops)
    else:
        kept = top_k(read_parts(work.source.parts), "uncertainty", keep)
    columns = pq.read_schema(work.source.parts[0])
    schema = pa.schema([columns.field(name) for name in work.stage.provides])
    rows = write_parts(kept, work.directory, schema, ["window_id"])
    return Outcome(
        rows, f"{rows:,} of {before:,} windows", removed=before - rows, ledger=ledger, details=details
    )


def kept_of(settings: Selection, rows: int) -> int:
    """How many windows of `rows` are kept. Raises UserError where it is all of them."""
    keep = max(1, round(settings.keep * rows))
    if keep >= rows:
        raise UserError(
            f"selection.keep {settings.keep:g} of {rows:,} windows is all of them, which selects nothing: "
            "lower it, remove selection, or bring more text"
        )
    return keep


def _diverse(work: Work, settings: Diversity, keep: int) -> tuple[Dataset, float, dict[str, Any]]:
    """The windows kept of every cluster, the FLOPs of clustering, and rows and quota of every cluster."""
    parts, rows = work.source.parts, work.source.rows
    clusters: Clusters = ray.get(_fit.remote(parts, settings, work.recipe.seed))
    narrow = read_parts(parts).select_columns(["window_id", "uncertainty", "embedding"])
    narrow = map_tables(narrow, _Assign(clusters), TASK_CPUS).drop_columns(["embedding"]).materialize()
    sizes = _sizes(blocks_of(narrow))
    wanted = quotas(sizes, keep)
    found = threshold_each(narrow, "uncertainty", wanted, "cluster")
    kept = take_each(
        map_tables(read_parts(parts), _Assign(clusters), TASK_CPUS), "uncertainty", found, "cluster"
    )
    compared = min(rows, settings.sample) * (ROUNDS + 2) + 2 * rows
    shown = [[sizes[cluster], wanted.get(cluster, 0)] for cluster in sorted(sizes)]
    return kept, 2.0 * compared * clusters.directions.size, {"clusters": shown}


@ray.remote(num_cpus=1)
def _fit(parts: list[Path], settings: Diversity, seed: int) -> Clusters:
    """Windows lie in the order of their ids, which are hashes: the first ones are a random sample."""
    sample = embedding_array(first_rows(parts, ["embedding"], "train", settings.sample))
    try:
        return Clusters.fit(sample, settings.clusters, seed)
    except ValueError as error:
        raise UserError(
            f"selection.diversity.clusters {settings.clusters}: {error} (selection.diversity.sample "
            f"{settings.sample}): set clusters lower, or bring more text"
        ) from error


class _Assign:
    """Adds the cluster of every window."""

    def __init__(self, clusters: Clusters) -> None:
        self.clusters = clusters

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.append_column("cluster", pa.array(self.clusters.assign(embedding_array(table))))


def _sizes(blocks: list[Any]) -> Counter[int]:
    """Rows of every cluster that has any."""
    sizes: Counter[int] = Counter()
    for counting in [_count_clusters.remote(block) for block in blocks]:
        counted: dict[int, int] = ray.get(counting)
        sizes.update(counted)
    return sizes


@ray.remote(num_cpus=TASK_CPUS)
def _count_clusters(block: pa.Table) -> dict[int, int]:
    clusters, counts = np.unique(block["cluster"].to_numpy(), return_counts=True)
    return dict(zip(clusters.tolist(), counts.tolist(), strict=True))
