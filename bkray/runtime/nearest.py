"""The stage that keeps, of the training documents, those nearest to a target (`cleaning.nearest`).

target ─► unigrams of its training documents ─┐
documents ─► unigrams of the pool ────────────┴─► likeness of each ─► threshold ─► without those beyond it
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from bkray.config import Recipe, UserError
from bkray.corpus import Shard, read_shard
from bkray.corpus.cleaning import count_unigrams, likeness
from bkray.runtime.cleaning import REMOVED, add_unigrams, unigram_blocks, without
from bkray.runtime.plan import drawn_seeds
from bkray.runtime.stages import map_tables, read_parts, top_k
from bkray.runtime.work import Outcome, Work

_SCORED = REMOVED.set(REMOVED.get_field_index("value"), pa.field("value", pa.float32(), nullable=False))


def nearest(work: Work) -> Outcome:
    """Keep round(keep x documents) of the training documents, at least one; of equals the higher id."""
    settings = work.recipe.cleaning.nearest
    assert settings
    documents = read_parts(work.source.parts, "train")
    count = _count.options(num_returns=2)
    models, details = count.remote(work.recipe, work.plan.named.target, *unigram_blocks(documents))
    distances = map_tables(documents, _Distance(models)).materialize()
    rows = distances.count()
    goes = rows - max(1, round(settings.keep * rows))
    farthest = top_k(distances, "value", goes, "doc_id") if goes else None
    return without(work, farthest, ray.get(details))


@ray.remote(num_cpus=1)
def _count(
    recipe: Recipe, shards: tuple[Shard, ...], *blocks: pa.Table
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, int]]:
    """Unigram counts of the target and of target and pool together; how many documents the target has."""
    target, rows = count_unigrams([]), 0
    try:
        for documents in _trained_on(recipe, shards):
            target += count_unigrams(documents["text"].to_pylist())
            rows += documents.num_rows
    except UserError as error:
        raise UserError(f"cleaning.nearest.to: {error}") from error
    if not rows:
        raise UserError("cleaning.nearest.to: no document of it is for training: set its shares lower")
    return (target, target + add_unigrams(blocks)), {"target": rows}


def _trained_on(recipe: Recipe, shards: tuple[Shard, ...]) -> Iterator[pa.Table]:
    """The target's documents that none of the seeds which draw its splits holds out."""
    settings = recipe.cleaning.nearest
    assert settings
    first, *others = drawn_seeds(recipe)

    def read(seed: int) -> Iterator[tuple[pa.Table, pa.Array]]:
        for shard in shards:
            for documents, _ in read_shard(shard, settings.to, recipe.cleaning, seed):
                yield documents, pc.equal(documents["split"], "train")

    held_out = [
        documents.filter(pc.invert(train))["doc_id"] for seed in others for documents, train in read(seed)
    ]
    ids = pa.concat_arrays(
        [chunk for column in held_out for chunk in column.chunks] or [pa.array([], pa.int64())]
    )
    for documents, train in read(first):
        yield documents.filter(pc.and_(train, pc.invert(pc.is_in(documents["doc_id"], ids))))


class _Distance:
    """Documents to rows as if all of them were removed: `value` is the distance from the target, nats."""

    def __init__(self, models: ray.ObjectRef) -> None:
        self.models = models

    def __call__(self, documents: pa.Table) -> pa.Table:
        rows = documents.num_rows
        distances = -likeness(documents["text"].to_pylist(), *ray.get(self.models))
        columns = [documents["doc_id"], documents["source"], pa.array(["farther"] * rows, pa.string())]
        return pa.table(
            [*columns, pa.array(distances.astype(np.float32)), pa.nulls(rows, pa.int64())], schema=_SCORED
        )
