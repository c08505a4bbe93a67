"""The stages that find training documents which give away held-out ones.

What other corpora hold out goes from the training documents:

other corpora ─► their validation and test documents, as their own runs draw them ─► HeldOutTexts ─┐
documents ─► leaks (ids and reasons, small) ─► removed.parquet, and the documents without them ◄───┘

What a start model has seen of this run's held-out documents is too late to take out, and is counted:

documents ─► their validation and test ones ─► HeldOutTexts ─┐
training documents of the start model's run ─► leaks ◄───────┘ ─► seen.parquet, a row a held-out document
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from bkray.config import Recipe, UserError
from bkray.config.corpus import Leakage
from bkray.corpus import DOCUMENTS, Shard
from bkray.corpus.cleaning.leakage import HeldOutTexts
from bkray.corpus.shard import HELD_OUT
from bkray.corpus.windows import count_values, read_columns
from bkray.runtime.cleaning import REMOVED, crowded_of, with_count, without, without_counts
from bkray.runtime.plan import drawn_seeds
from bkray.runtime.reading import REJECTED, Reading, write_rejects
from bkray.runtime.stages import blocks_of, map_tables, read_parts
from bkray.runtime.work import Outcome, Work

_NO_LIMIT = 2**40  # characters


def decontaminated(work: Work) -> Outcome:
    """Take out training documents equal to, nearly equal to or overlapping with held-out ones of others.

    One worker holds those held-out documents while it indexes them; the index lies once on each machine, in
    the memory that its workers share.
    """
    fit: Any = _index.options(num_returns=2)
    index, counts = fit.remote(work.recipe, work.plan.named.held_out, work.directory)
    held_out = ray.get(counts)  # an error of the corpora ends the stage here, by its own message
    found = map_tables(read_parts(work.source.parts, "train"), _Leaks(index)).materialize()
    details = {"held_out": held_out, "crowded": crowded_of(found)}
    return without(work, map_tables(found, without_counts), details)


@ray.remote(num_cpus=1)
def _index(
    recipe: Recipe, shards: dict[str, tuple[Shard, ...]], directory: Path
) -> tuple[tuple[HeldOutTexts, pa.Table], dict[str, int]]:
    """The held-out texts of all corpora, their `doc_id` and `corpus`; and how many there are of each.

    What is rejected of them is written to `directory`.
    """
    leakage, alike = recipe.cleaning.leakage, recipe.cleaning.alike
    assert leakage
    readings = {name: _reading(recipe, name, shards[name]) for name in sorted(shards)}
    tables = {name: held_out_documents(name, reading, recipe) for name, reading in readings.items()}
    write_rejects(readings, directory / REJECTED)
    documents = pa.concat_tables(tables.values())
    near = alike.threshold, alike.ngram
    found = HeldOutTexts(documents["text"].to_pylist(), leakage.overlap, near)
    counts = {name: table.num_rows for name, table in tables.items()}
    return (found, documents.select(["doc_id", "corpus"])), counts


def _reading(recipe: Recipe, name: str, shards: tuple[Shard, ...]) -> Reading:
    """No length is a reason to reject: what a limit rejects here, another run may hold out.

    The corpus's own runs say how much is too much of what they reject as well.
    """
    leakage = recipe.cleaning.leakage
    assert leakage
    unlimited = recipe.cleaning.model_copy(update={"max_chars": _NO_LIMIT, "max_rejects": 1.0})
    return Reading(f"cleaning.leakage.held_out_of.{name}", leakage.held_out_of[name], shards, unlimited)


def held_out_documents(name: str, reading: Reading, recipe: Recipe) -> pa.Table:
    """`doc_id`, `text` and `corpus` of what the corpus `name` holds out, by shard and place in it.

    The splits are those of a run on that corpus with any of the seeds.
    """
    none = DOCUMENTS.empty_table().select(["doc_id", "text"])
    tables, taken = [none], pa.array([], pa.int64())
    for seed in drawn_seeds(recipe):
        for documents in reading.documents(seed):
            new = pc.invert(pc.is_in(documents["doc_id"], taken))
            held_out = pc.and_(pc.not_equal(documents["split"], "train"), new)
            tables.append(documents.filter(held_out).select(none.column_names))
        taken = pa.concat_tables(tables)["doc_id"].combine_chunks()
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise UserError(
            f"{reading.setting}: no document is held out: set its validation and test "
            "shares as its own runs do, or remove it"
        )
    return table.append_column("corpus", pa.array([name] * table.num_rows))


def seen_before(work: Work) -> Outcome:
    """Count held-out documents that training text of the start model's run, or of one before, gives away.

    What counts is what `cleaning.leakage` takes out by default. All of them stay: runs are compared on the
    same text. A training document names one held-out document, so it may be a few more.
    """
    near = work.recipe.cleaning.alike
    fit: Any = _index_own.options(num_returns=2)
    index, count = fit.remote(work.source.parts, (near.threshold, near.ngram))
    parts = [part for documents in work.plan.learnt.documents for part in documents.parts]
    leaks = map_tables(map_tables(read_parts(parts, "train"), _Leaks(index)), without_counts).materialize()
    path = work.directory / "seen.parquet"
    ray.get(_write_seen.remote(str(path), *blocks_of(leaks)))
    reasons = dict(sorted(count_values([path], "reason").items()))
    held_out, found = ray.get(count), sum(reasons.values())
    start, replay = work.recipe.training.start_from, work.recipe.training.replay
    replayed = f" or training.replay.run {replay.run} holds" if replay else ""
    if found:
        work.line.say(
            f"{found:,} of {held_out:,} held-out documents are, whole or in part, in text that "
            f"training.start_from {start} learnt from{replayed}, so held-out figures are too good: `bkray "
            "transfer` takes such text out of the pool first"
        )
    named = "".join(f", {number:,} {reason}" for reason, number in reasons.items())
    summary = f"{found:,} of {held_out:,} held-out documents known to the start model" + named
    details = {"held_out": held_out, "reasons": reasons}
    return Outcome(found, summary, details=details)


@ray.remote(num_cpus=1)
def _index_own(parts: list[Path], near: tuple[float, int]) -> tuple[tuple[HeldOutTexts, pa.Table], int]:
    """What the run itself holds out, as `_index` has that of others, `corpus` being the split."""
    tables = [read_columns(parts, ["doc_id", "text", "split"], split) for split in HELD_OUT]
    documents = pa.concat_tables(tables).rename_columns({"split": "corpus"})
    found = HeldOutTexts(documents["text"].to_pylist(), Leakage.model_fields["overlap"].default, near)
    return (found, documents.select(["doc_id", "corpus"])), documents.num_rows


@ray.remote(num_cpus=1)
def _write_seen(path: str, *blocks: pa.Table) -> None:
    """Write a row of each held-out document that a training document gives away, the clearest: equal, near
    duplicate, overlap; the roles of `doc_id` and `twin_id` change."""
    leaks = pa.concat_tables([REMOVED.empty_table(), *(block.cast(REMOVED) for block in blocks)])
    turned = leaks.rename_columns({"doc_id": "twin_id", "twin_id": "doc_id"}).select(REMOVED.names)
    order = [(name, "ascending") for name in ("doc_id", "reason", "source", "twin_id")]
    rows = turned.sort_by(order).combine_chunks()
    first = np.unique(rows["doc_id"].to_numpy(), return_index=True)[1]
    pq.write_table(rows.take(pa.array(first)).replace_schema_metadata(None), path, compression="zstd")


class _Leaks:
    """Documents to those of them that give something away, and a count of the crowded ones."""

    def __init__(self, index: ray.ObjectRef) -> None:
        self.index = index

    def __call__(self, documents: pa.Table) -> Iterator[pa.Table]:
        held_out, named = ray.get(self.index)
        leaks, crowded = held_out.leaks(documents["text"].to_pylist())
        rows = [
            {
                "doc_id": doc_id,
                "source": source,
                "reason": f"{leak.kind}, held out of {named['corpus'][leak.row].as_py()}",
                "value": leak.value,
                "twin_id": named["doc_id"][leak.row].as_py(),
            }
            for doc_id, source, leak in zip(
                documents["doc_id"].to_pylist(),
                documents["source"].to_pylist(),
                leaks,
                strict=True,
            )
            if leak
        ]
        yield with_count(pa.Table.from_pylist(rows, schema=REMOVED), int(crowded.sum()))
