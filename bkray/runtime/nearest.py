"""The stage that keeps, of the training documents, those nearest to a target (`cleaning.nearest`).

target ─► unigrams of its training documents ─┐
documents ─► unigrams of the pool ────────────┴─► likeness of each ─► threshold ─► without those beyond it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from bkray.config import Recipe, UserError
from bkray.config.corpus import Nearest
from bkray.corpus import Shard
from bkray.corpus.cleaning import count_unigrams, likeness
from bkray.corpus.windows import count_values
from bkray.runtime.cleaning import REMOVED, add_unigrams, unigram_blocks, without
from bkray.runtime.plan import drawn_seeds
from bkray.runtime.reading import REJECTED, Reading, write_rejects
from bkray.runtime.stages import map_tables, read_parts, top_k
from bkray.runtime.work import Outcome, Work

_SCORED = REMOVED.set(REMOVED.get_field_index("value"), pa.field("value", pa.float32(), nullable=False))


def nearest(work: Work) -> Outcome:
    """Keep round(keep x documents) of the training documents, the nearest; of equals the higher ids."""
    settings = work.recipe.cleaning.nearest
    assert settings
    goes = gone_of(settings, count_values(work.source.parts, "split")["train"])
    documents = read_parts(work.source.parts, "train")
    count = _count.options(num_returns=2)
    asked = work.recipe, work.plan.named.target, work.directory
    models, counts = count.remote(*asked, *unigram_blocks(documents))
    details = ray.get(counts)  # an error of the target ends the stage here, by its own message
    distances = map_tables(documents, _Distance(models)).materialize()
    return without(work, top_k(distances, "value", goes, "doc_id"), details)


def gone_of(settings: Nearest, rows: int) -> int:
    """How many documents of `rows` go. Raises UserError where it is none or all of them."""
    kept = round(settings.keep * rows)
    if 0 < kept < rows:
        return rows - kept
    what, mend = ("none, so no text is left", "raise it") if not kept else ("all, so none goes", "lower it")
    raise UserError(
        f"cleaning.nearest.keep {settings.keep:g} of {rows:,} training documents is {what}: {mend}, remove "
        "cleaning.nearest, or bring more text"
    )


@ray.remote(num_cpus=1)
def _count(
    recipe: Recipe, shards: tuple[Shard, ...], directory: Path, *blocks: pa.Table
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, int]]:
    """Unigram counts of the target and of target and pool together; how many documents the target has.

    What is rejected of the target is written to `directory`.
    """
    settings = recipe.cleaning.nearest
    assert settings
    reading = Reading("cleaning.nearest.to", settings.to, shards, recipe.cleaning)
    target, rows = count_unigrams([]), 0
    for documents in reading.trained_on(drawn_seeds(recipe)):
        target += count_unigrams(documents["text"].to_pylist())
        rows += documents.num_rows
    write_rejects({"": reading}, directory / REJECTED)
    return (target, target + add_unigrams(blocks)), {"target": rows}


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
