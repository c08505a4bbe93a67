"""The stages that take training documents out: near-duplicates, and text unlike a trusted sample.

    documents ─► what has to go (ids and reasons, small) ─► removed.parquet, and the documents without them

Held-out documents are never taken out, so that arms of a comparison are measured on the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Dataset

from bkray.config import Recipe, UserError
from bkray.config.corpus import NearDuplicates
from bkray.corpus import DOCUMENTS, Shard
from bkray.corpus.cleaning import (
    QualityFilter,
    alike,
    count_unigrams,
    linked,
    located,
    near_duplicates,
    rows_per_band,
    sketches,
)
from bkray.corpus.cleaning.near import PERMUTATIONS
from bkray.corpus.cleaning.quality import SCORES
from bkray.corpus.windows import count_values, first_rows
from bkray.runtime.plan import learned_from
from bkray.runtime.reading import REJECTED, Reading, write_rejects
from bkray.runtime.stages import blocks_of, bucket_of, map_tables, merged, read_parts, write_parts
from bkray.runtime.work import Outcome, Work

_BUCKETS = 16
_SAMPLE_DOCUMENTS = 100
_UNIGRAM_PARTS = 16  # files of the pool whose words are counted, 65,536 documents that are not very long

REMOVED = pa.schema(
    [
        pa.field("doc_id", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),  # similarity, deviations from the mean, or nats
        pa.field("twin_id", pa.int64()),  # the kept document that a near-duplicate resembles
    ]
)

_COUNTED = pa.schema([field.with_nullable(True) for field in REMOVED] + [pa.field("crowded", pa.int64())])


# --- near-duplicates -----------------------------------------------------------------------------


def deduplicated(work: Work) -> Outcome:
    """Take out training documents that nearly repeat another one, over all blocks and splits.

    One worker holds, of every document, 8 bytes a band (32 bands at threshold 0.6, 18 at 0.8) and 144 more,
    and as much again for keys that are shared, while it groups them; the driver holds nothing. Texts are
    exchanged only of documents that may have a near-duplicate; a worker holds a sixteenth of them or, where
    that is more, a group.
    """
    near = work.recipe.cleaning.near
    assert near
    found = map_tables(read_parts(work.source.parts), _Sketch(near)).materialize()
    groups, linked_count = _group.options(num_returns=2).remote(near.threshold, *blocks_of(found))
    del found
    if not ray.get(linked_count):
        return without(work, None, {})
    members = merged(map_tables(read_parts(work.source.parts), _Members(groups)).materialize())
    found = members.groupby("bucket").map_groups(partial(_twins, near), batch_format="pyarrow", num_cpus=1)
    found = found.materialize()
    details = {"linked": ray.get(linked_count), "crowded": crowded_of(found)}
    return without(work, map_tables(found, without_counts), details)


class _Sketch:
    """Documents to their ids, band keys and digests."""

    def __init__(self, near: NearDuplicates) -> None:
        self.near = near
        self.bands = PERMUTATIONS // rows_per_band(near.threshold)

    def __call__(self, documents: pa.Table) -> pa.Table:
        keys_DB, digests_DK = sketches(documents["text"].to_pylist(), self.near.threshold, self.near.ngram)
        keys = pa.FixedSizeListArray.from_arrays(pa.array(keys_DB.reshape(-1)), self.bands)
        digests = pa.FixedSizeListArray.from_arrays(pa.array(digests_DK.reshape(-1)), PERMUTATIONS)
        return pa.table({"doc_id": documents["doc_id"], "keys": keys, "digest": digests})


@ray.remote(num_cpus=1, max_calls=1)  # what it held goes with its process
def _group(threshold: float, *blocks: pa.Table) -> tuple[pa.Table, int]:
    """doc_id and group of every document that may have a near-duplicate, sorted by id; and how many."""
    table = pa.concat_tables(blocks)
    ids = table["doc_id"].to_numpy()
    keys_DB, digests_DK = (
        np.concatenate([part.flatten().to_numpy() for part in table[name].chunks]).reshape(len(ids), -1)
        for name in ("keys", "digest")
    )
    some_D = alike(keys_DB, digests_DK, threshold)
    ids, keys_DB = ids[some_D], keys_DB[some_D]
    order = np.argsort(ids)
    found = pa.table({"doc_id": ids[order], "group": linked(keys_DB[order])})
    return found, found.num_rows


class _Members:
    """Keeps the documents that are in a group, and adds it and its bucket."""

    def __init__(self, groups: ray.ObjectRef) -> None:
        self.groups = groups

    def __call__(self, documents: pa.Table) -> pa.Table:
        groups = ray.get(self.groups)
        inside, places = located(groups["doc_id"].to_numpy(), documents["doc_id"].to_numpy())
        group = groups["group"].take(pa.array(places))
        kept = documents.filter(pa.array(inside)).append_column("group", group)
        return kept.append_column("bucket", pa.array(bucket_of(group.to_numpy(), _BUCKETS)))


def _twins(near: NearDuplicates, bucket: pa.Table) -> pa.Table:
    """Whole groups to those of their documents that go, and one row of none that counts the crowded ones."""
    trained_on = pc.equal(bucket["split"], "train")
    ordered = bucket.append_column("trained_on", trained_on).sort_by(
        [("group", "ascending"), ("trained_on", "ascending"), ("doc_id", "ascending")]
    )
    sizes = np.unique(ordered["group"].to_numpy(), return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    pieces = zip(starts.tolist(), sizes.tolist(), strict=True)
    found = [_twins_of_group(near, ordered.slice(*piece)) for piece in pieces]
    return with_count(pa.concat_tables([table for table, _ in found]), sum(crowded for _, crowded in found))


def _twins_of_group(near: NearDuplicates, group: pa.Table) -> tuple[pa.Table, int]:
    """The documents that go, and how many were not compared with all that share a key with them."""
    held_out = ~group["trained_on"].to_numpy()
    texts = group["text"].to_pylist()
    twin, similarity, crowded = near_duplicates(texts, held_out, near.threshold, near.ngram)
    goes = twin >= 0
    twins = group["doc_id"].take(pa.array(twin[goes]))
    return _removed(group, goes, "near duplicate", similarity[goes], twins), int(crowded.sum())


# --- quality -------------------------------------------------------------------------------------


def filtered(work: Work) -> Outcome:
    """Take out training documents that are less like the trusted sample than nearly all of the sample."""
    documents = read_parts(work.source.parts, "train")
    some, scale = _some(work.source.parts)
    fit = _fit.options(num_returns=2)
    asked = work.recipe, work.plan.named.trusted, work.directory, scale
    quality, counts = fit.remote(*asked, *unigram_blocks(read_parts(some, "train")))
    details = ray.get(counts)  # an error of the sample ends the stage here, by its own message
    return without(work, map_tables(documents, _Unlike(quality)), details)


def _some(parts: Sequence[Path]) -> tuple[list[Path], float]:
    """The first files with training documents, and of how many times as many they are a random sample: they
    lie in the order of hashed ids."""
    counts = {part: count_values([part], "split")["train"] for part in parts}
    some = [part for part in parts if counts[part]][:_UNIGRAM_PARTS] or list(parts[:1])
    return some, sum(counts.values()) / max(1, sum(counts[part] for part in some))


def unigram_blocks(documents: Dataset) -> list[Any]:
    """References to blocks of unigram counts, which `add_unigrams` adds up."""
    return blocks_of(map_tables(documents, _count_unigrams).materialize())


def add_unigrams(blocks: Sequence[pa.Table]) -> np.ndarray:
    counts = count_unigrams([])
    for block in blocks:
        counts += np.stack(block["unigrams"].to_numpy()).sum(axis=0)
    return counts


def _count_unigrams(documents: pa.Table) -> pa.Table:
    unigrams = pa.array(count_unigrams(documents["text"].to_pylist()))
    return pa.table({"unigrams": pa.FixedSizeListArray.from_arrays(unigrams, len(unigrams))})


@ray.remote(num_cpus=1)
def _fit(
    recipe: Recipe, shards: tuple[Shard, ...], directory: Path, scale: float, *blocks: pa.Table
) -> tuple[QualityFilter, dict]:
    """The filter of the sample in `shards` for a pool of `scale` times these unigrams; what to say of it.

    What is rejected of the sample is written to `directory`.
    """
    learned = learned_from(shards)
    sample = _read_sample(recipe, learned, directory)
    assert recipe.cleaning.quality
    quality = QualityFilter.fit(sample, scale * add_unigrams(blocks), recipe.cleaning.quality.lose)
    left_out = {"test_split_left_out": len(shards) - len(learned)}
    return quality, {"sample": len(sample), **left_out, "threshold": quality.threshold}


def _read_sample(recipe: Recipe, shards: tuple[Shard, ...], directory: Path) -> list[str]:
    """The sample's texts in its order; what is rejected of it goes to `directory`."""
    cleaning = recipe.cleaning
    assert cleaning.quality
    reading = Reading("cleaning.quality.sample", cleaning.quality.sample, shards, cleaning)
    texts = [text for documents in reading.documents(recipe.seed) for text in documents["text"].to_pylist()]
    write_rejects({"": reading}, directory / REJECTED)
    if len(texts) < _SAMPLE_DOCUMENTS:
        raise UserError(
            f"cleaning.quality.sample: {len(texts)} documents are too few to set a threshold by: "
            f"bring at least {_SAMPLE_DOCUMENTS}"
        )
    return texts


class _Unlike:
    """Documents to those of them whose quality is below the threshold."""

    def __init__(self, quality: ray.ObjectRef) -> None:
        self.quality = quality

    def __call__(self, documents: pa.Table) -> Iterator[pa.Table]:
        quality: QualityFilter = ray.get(self.quality)
        z_DS = quality.z(documents["text"].to_pylist())
        for place, name in enumerate(SCORES):
            goes = (z_DS.min(axis=1) < quality.threshold) & (z_DS.argmin(axis=1) == place)
            yield _removed(documents, goes, name, z_DS[goes, place])


# --- both ----------------------------------------------------------------------------------------


def _removed(
    documents: pa.Table, goes: np.ndarray, reason: str, values: np.ndarray, twins: pa.Array | None = None
) -> pa.Table:
    gone = documents.filter(pa.array(goes))
    rows = gone.num_rows
    columns = [gone["doc_id"], gone["source"], pa.array([reason] * rows, pa.string()), pa.array(values)]
    return pa.table([*columns, pa.nulls(rows, pa.int64()) if twins is None else twins], schema=REMOVED)


def with_count(gone: pa.Table, crowded: int) -> pa.Table:
    """REMOVED rows, and one of none that carries how many documents are crowded."""
    gone = gone.append_column("crowded", pa.array([0] * gone.num_rows, pa.int64())).cast(_COUNTED)
    return pa.concat_tables([gone, pa.Table.from_pylist([{"crowded": crowded}], schema=_COUNTED)])


def crowded_of(found: Dataset) -> int:
    """The sum of the counts of `with_count`."""
    crowded: Any = found.sum("crowded")
    return int(crowded or 0)


def without_counts(found: pa.Table) -> pa.Table:
    """The REMOVED rows of `with_count`."""
    return found.filter(pc.is_valid(found["doc_id"])).drop_columns(["crowded"])


def without(work: Work, removed: Dataset | None, details: dict) -> Outcome:
    """Write the documents but those in `removed`, and these to removed.parquet.

    What the stage has rejected of another corpus it reads lies in rejects.parquet by now, and is counted.
    """
    blocks = blocks_of(removed.materialize()) if removed else []
    path = work.directory / "removed.parquet"
    gone = _write_removed.remote(str(path), *blocks)
    kept = map_tables(read_parts(work.source.parts), Others(gone))
    rows = write_parts(kept, work.directory, DOCUMENTS, ["split", "doc_id"])
    counts = dict(sorted(count_values([path], "reason").items()))
    named = "".join(f", {number:,} removed ({reason})" for reason, number in counts.items())
    if not first_rows(sorted(work.directory.glob("part-*")), ["doc_id"], "train", 1).num_rows:
        raise UserError(f"{work.stage.name}: no training document is left{named}: {_MENDS[work.stage.name]}")
    rejects, said = count_rejects(work)
    summary = f"{rows:,} documents" + (named or ", none removed") + said
    details = {"reasons": counts, **details}
    return Outcome(rows, summary, removed=sum(counts.values()), rejects=rejects, details=details)


def count_rejects(work: Work) -> tuple[dict[str, int], str]:
    """The rejects of the other corpus that the stage reads, by reason; and the end of a line that says so."""
    if work.stage.name not in _READS:
        return {}, ""
    rejects = dict(sorted(count_values([work.directory / REJECTED], "reason").items()))
    reads, rows = _READS[work.stage.name], sum(rejects.values())
    return rejects, f", {rows:,} rows of {reads} rejected" if rows else ""


_READS = {
    "decontaminated": "cleaning.leakage.held_out_of",
    "filtered": "cleaning.quality.sample",
    "nearest": "cleaning.nearest.to",
    "tokenizer": "tokenizer.corpus",
}


_MENDS = {
    "decontaminated": "take corpora out of cleaning.leakage.held_out_of, or bring more text",
    "deduplicated": "raise cleaning.near.threshold",
    "filtered": "lower cleaning.quality.lose, or bring a sample that is like the corpus",
    "nearest": "bring more text",
}


@ray.remote(num_cpus=1)
def _write_removed(path: str, *blocks: pa.Table) -> np.ndarray:
    """Write what goes, sorted by id, and return the ids."""
    rows = [block.cast(REMOVED) for block in blocks]
    table = pa.concat_tables([REMOVED.empty_table(), *rows]).sort_by("doc_id").combine_chunks()
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")
    return table["doc_id"].to_numpy()


class Others:
    """Keeps the documents that are not among the given ids."""

    def __init__(self, ids: ray.ObjectRef) -> None:
        self.ids = ids

    def __call__(self, documents: pa.Table) -> pa.Table:
        gone, _ = located(ray.get(self.ids), documents["doc_id"].to_numpy())
        return documents.filter(pa.array(~gone))
