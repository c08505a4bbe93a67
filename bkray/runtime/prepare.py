"""The data stages that need no model: each reads finished artifacts through Ray Data and fills a new folder.

A stage is a function (Work) -> Outcome. It may be killed at any time: its folder is not an artifact until the
end. This module imports no torch, so that the workers of these stages start in a second.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Dataset
from tokenizers import Tokenizer

from bkray.augmentation import build_augmentation
from bkray.config import Recipe, UserError
from bkray.config.corpus import AnyCorpus, MixedCorpus, TextCorpus
from bkray.corpus import (
    Shard,
    copies,
    load_tokenizer,
    pack,
    read_shard,
    text_hash,
    train_tokenizer,
)
from bkray.corpus.schema import DOCUMENTS, REJECTS, SPLITS, row_rng, windows_schema
from bkray.corpus.windows import count_values, read_rows
from bkray.runtime.artifacts import Artifact
from bkray.runtime.cleaning import Others, count_rejects
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.plan import vocabulary_seeds
from bkray.runtime.reading import REJECTED, Reading, many_rejected, too_many, write_rejects
from bkray.runtime.stages import actors, blocks_of, bucket_of, map_tables, merged, read_parts, write_parts
from bkray.runtime.work import Outcome, Work

_BUCKETS = 16  # of ids and hashes, 20 bytes a document
_BLOCKS_PER_CPU = 8  # enough to share the work evenly; a shuffle's cost grows with the number of blocks
_FEW_DOCUMENTS = 64  # a split of fewer is measured as soon as it is read
_FEWEST_DOCUMENTS = 32  # a block of augmentation: starting a translator takes as long as some of them
_REJECTS_HELD = 10_000
_FILTERS = ("leakage", "near", "quality", "nearest")  # of training documents
_LONG_WORD, _LONG_BLANK = re.compile(r"\S{1000}"), re.compile(r"(\s{1000})\s+")  # BPE trains in their square
_MOST_DOCUMENTS = 256  # a block of augmentation: slow translations are done in minutes, not in hours
_MOST_BYTES = 16 << 20  # of such a block: split into words, a text takes many times as much
_MOST_TRANSLATED = 128 << 10  # bytes of it where a kind translates: a stage that ends no block is given up


# --- documents -----------------------------------------------------------------------------------


def documents(work: Work) -> Outcome:
    """Read every shard, set rejects aside, remove exact duplicates over all splits."""
    recipe, shards = work.recipe, list(work.plan.shards)
    rejects = work.directory / ".rejects"
    rejects.mkdir()
    blocks = min(len(shards), _BLOCKS_PER_CPU * work.cpus)
    items = ray.data.from_items(
        [{"shard": number} for number in range(len(shards))], override_num_blocks=blocks
    )
    read = map_tables(items, _ReadShards(shards, recipe, rejects), batch_size=1).materialize()
    total = read.count()
    reasons = _gather_rejects(rejects, work.directory / "rejects.parquet")
    _check_rejects(reasons, total, recipe, work.directory / "rejects.parquet")
    if total == 0:
        raise UserError(
            f"corpus: {len(shards)} files hold no document: give another path, or look at its text field"
        )
    kept = map_tables(read, Others(_gather_copies(read))) if recipe.cleaning.exact else read
    rows = write_parts(kept, work.directory, DOCUMENTS, ["split", "doc_id"])
    shutil.rmtree(rejects)
    drawn = {split for shard in shards for split in shard.carve}
    _check_splits(sorted(work.directory.glob("part-*")), recipe, total - rows, drawn)
    rejected = sum(reasons.values())
    summary = f"{rows:,} documents, {total - rows:,} duplicates removed, {rejected:,} rejected"
    return Outcome(rows, summary, removed=total - rows, rejects=dict(reasons))


class _ReadShards:
    """Rows {shard: number} to documents; rejects go to one file a shard."""

    def __init__(self, shards: list[Shard], recipe: Recipe, rejects: Path) -> None:
        self.shards, self.recipe, self.rejects = shards, recipe, rejects

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for number in batch["shard"].to_pylist():
            rejected = _Rejects(self.rejects / f"{number:08d}.parquet")
            for table, rejects in read_shard(
                self.shards[number], self.recipe.corpus, self.recipe.cleaning, self.recipe.seed
            ):
                rejected.add(rejects)
                yield table
            rejected.close()
        yield DOCUMENTS.empty_table()


class _Rejects:
    """The rejects of a shard, some thousands of which are held; the file comes with the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = REJECTS.empty_table()
        self._writer: pq.ParquetWriter | None = None

    def add(self, rejects: pa.Table) -> None:
        self._held = pa.concat_tables([self._held, rejects])
        if self._held.num_rows >= _REJECTS_HELD:
            self._write()

    def close(self) -> None:
        if self._held.num_rows:
            self._write()
        if self._writer:
            self._writer.close()

    def _write(self) -> None:
        self._writer = self._writer or pq.ParquetWriter(self.path, REJECTS)
        self._writer.write_table(self._held)
        self._held = REJECTS.empty_table()


def _gather_copies(read: Dataset) -> ray.ObjectRef:
    """The ids of documents whose text one of a lower id has, sorted: hashes are grouped, and no texts."""
    hashes = merged(map_tables(read, _hashes).materialize())
    found = hashes.groupby("bucket").map_groups(_copies, batch_format="pyarrow", num_cpus=1)
    return _sorted_ids.remote(*blocks_of(found.materialize()))


def _hashes(documents: pa.Table) -> pa.Table:
    hashes = np.array([text_hash(text) for text in documents["text"].to_pylist()], dtype=np.int64)
    buckets = bucket_of(hashes, _BUCKETS)
    return pa.table({"doc_id": documents["doc_id"], "text_hash": hashes, "bucket": buckets})


def _copies(bucket: pa.Table) -> pa.Table:
    return bucket.filter(pa.array(copies(bucket))).select(["doc_id"])


@ray.remote(num_cpus=TASK_CPUS)
def _sorted_ids(*blocks: pa.Table) -> np.ndarray:
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(block["doc_id"].to_numpy() for block in blocks)]))


def _gather_rejects(folder: Path, target: Path) -> Counter[str]:
    """Write the shards' rejects in order into one file, some at a time; count them by reason.

    The folder stays: a shard that is read once more, where a block of it was lost, writes its rejects again.
    """
    with pq.ParquetWriter(target, REJECTS) as merged:
        for path in sorted(folder.iterdir()):
            with pq.ParquetFile(path) as own:
                for batch in own.iter_batches():
                    merged.write_batch(batch)
    return count_values([target], "reason")


def _check_rejects(reasons: Counter[str], accepted: int, recipe: Recipe, path: Path) -> None:
    rejected = sum(reasons.values())
    if too_many(rejected, accepted, recipe.cleaning):
        with pq.ParquetFile(path) as rejects:
            first = next(rejects.iter_batches(1)).to_pylist()[0]
        finer = _finer(recipe.corpus) if first["reason"] == "too long" else ""
        raise many_rejected("corpus", rejected, accepted, recipe.cleaning, first, finer)


def _finer(corpus: AnyCorpus) -> str:
    """How the text of a corpus falls into more documents, as the begin of a mend; empty where it cannot."""
    sources = corpus.sources if isinstance(corpus, MixedCorpus) else (corpus,)
    texts = [source for source in sources if isinstance(source, TextCorpus)]
    coarse = any(text.document != "line" and not text.document_start for text in texts)
    place = "document in corpus.sources" if isinstance(corpus, MixedCorpus) else "corpus.document"
    return f"set {place} to line, or " if coarse else ""


def _check_splits(parts: list[Path], recipe: Recipe, removed: int = 0, drawn: Collection[str] = ()) -> None:
    """Refuse a split of which no tokenizer can make a window: a token is at least a byte or ends a text.

    `removed`: duplicates that went, of all splits. `drawn`: splits that are drawn from the documents.
    """
    gone = f" after {removed:,} duplicates were removed from all splits" if removed else ""
    for split in SPLITS:
        count = size = 0
        for rows in read_rows(parts, ["text"], split):
            count += rows.num_rows
            size += pc.sum(pc.binary_length(rows["text"])).as_py() or 0
            if count >= _FEW_DOCUMENTS or size + count > recipe.window:
                break
        else:
            raise UserError(
                f"corpus: the {split} split is too small for one window of {recipe.window} tokens, it has "
                f"{count} documents of {size} bytes in all{gone}: {_finer(recipe.corpus)}"
                f"{_larger(recipe.corpus, split) if split in drawn else ''}set window lower, or bring more "
                "text"
            )


def _larger(corpus: AnyCorpus, split: str) -> str:
    """How a split that is drawn gets more of the documents, as the begin of a mend."""
    if isinstance(corpus, MixedCorpus):
        return f"set {split} in corpus.sources higher, or "
    return f"set corpus.{split} higher than {getattr(corpus, split):g}, or "


# --- tokenizer, augmentation, windows --------------------------------------------------------------


def tokenizer(work: Work) -> Outcome:
    """Train the byte-level BPE on the training documents, of the corpus or of the one that it has for itself,
    or take that of a model that the recipe names."""
    target = work.directory / "tokenizer.json"
    if start := next(iter(work.recipe.tokenizer_models.values()), None):
        shutil.copy(Path(start) / "tokenizer.json", target)
        size = load_tokenizer(target).get_vocab_size()
        return Outcome(size, f"{size:,} tokens, of {start}")
    if work.recipe.tokenizer.corpus:
        shards = work.plan.named.vocabulary
        size = ray.get(_train_on_corpus.remote(work.recipe, shards, target))
        rejects, said = count_rejects(work)
        return Outcome(size, f"{size:,} tokens, trained on tokenizer.corpus{said}", rejects=rejects)
    vocab_size = work.recipe.tokenizer.vocab_size
    size = ray.get(_train_tokenizer.remote(work.source.parts, vocab_size, target))
    return Outcome(size, f"{size:,} tokens")


@ray.remote(num_cpus=1)
def _train_tokenizer(parts: list[Path], vocab_size: int, target: Path) -> int:
    return _fit(read_rows(parts, ["text"], "train"), vocab_size, target)


@ray.remote(num_cpus=1)
def _train_on_corpus(recipe: Recipe, shards: tuple[Shard, ...], target: Path) -> int:
    """What is rejected of the other corpus is written beside `target`."""
    asked = recipe.tokenizer
    assert asked.corpus
    reading = Reading("tokenizer.corpus", asked.corpus, shards, recipe.cleaning)
    size = _fit(reading.trained_on(vocabulary_seeds(recipe)), asked.vocab_size, target)
    write_rejects({"": reading}, target.parent / REJECTED)
    return size


def _fit(tables: Iterable[pa.Table], vocab_size: int, target: Path) -> int:
    def texts() -> Iterator[str]:
        for rows in tables:
            for text in rows["text"].to_pylist():
                yield _LONG_BLANK.sub(r"\1", _LONG_WORD.sub(r"\g<0>\n", text))

    trained = train_tokenizer(texts(), vocab_size)
    trained.save(str(target))
    return trained.get_vocab_size()


def augmented(work: Work) -> Outcome:
    """Of each training document that a kind takes one augmented document, or the reason why there is none."""
    originals = read_parts(work.source.parts, "train").materialize()
    block = block_rows(work.recipe, originals.count(), originals.size_bytes(), work.cpus)
    spread = originals.repartition(target_num_rows_per_block=block)
    attempts = map_tables(
        spread,
        _Augment,
        TASK_CPUS,
        fn_constructor_args=(work.recipe,),
        compute=actors(work.cpus, originals.count(), block),  # WordNet goes from memory as they end
        batch_size=block,
    ).materialize()
    outcomes = map_tables(attempts, _outcomes, batch_size=None).take_all()
    kinds = augmentation_counts([section.kind for section in work.recipe.augmentation], outcomes)
    rows = write_parts(map_tables(attempts, _made), work.directory, DOCUMENTS, ["doc_id"])
    dropped = sum(sum(kind["dropped"].values()) for kind in kinds)
    summary = f"{rows:,} documents: " + "; ".join(map(_said, kinds))
    return Outcome(rows, summary, removed=dropped, details={"augmentation": kinds})


def block_rows(recipe: Recipe, count: int, size: int, cpus: int) -> int:
    """Documents of a block of augmentation, of `count` documents that take `size` bytes."""
    translates = any(section.kind == "back_translation" for section in recipe.augmentation)
    evenly = -(-count // (_BLOCKS_PER_CPU * cpus))
    fits = max(1, (_MOST_TRANSLATED if translates else _MOST_BYTES) * count // max(1, size))
    return min(_MOST_DOCUMENTS, fits, max(_FEWEST_DOCUMENTS, evenly))


class _Augment:
    """Documents to what every kind makes of them: `attempts`, and whether a text is still the original."""

    def __init__(self, recipe: Recipe) -> None:
        self.kinds = [
            (section.share, build_augmentation(section, recipe.seed)) for section in recipe.augmentation
        ]
        self.seed = recipe.seed

    def __call__(self, documents: pa.Table) -> Iterator[pa.Table]:
        for place, (share, kind) in enumerate(self.kinds):
            originals = self._taken(documents, share, place)
            attempts = kind.attempts(originals)
            yield attempts.append_column("unchanged", pc.equal(attempts["text"], originals["text"]))

    def _taken(self, documents: pa.Table, share: float, place: int) -> pa.Table:
        """The `share` that the kind at `place` of the list draws, of which the others know nothing."""
        stage = f"augmented {place}" if place else "augmented"
        draws = [row_rng(self.seed, stage, doc_id).random() for doc_id in documents["doc_id"].to_pylist()]
        return documents.filter(pa.array(np.array(draws) < share))


def _made(attempts: pa.Table) -> pa.Table:
    return attempts.filter(pc.is_null(attempts["dropped"]))


def _outcomes(attempts: pa.Table) -> pa.Table:
    """How many attempts of a block came to what: rows {augmentation, dropped, unchanged, count_all}."""
    return attempts.group_by(["augmentation", "dropped", "unchanged"]).aggregate([([], "count_all")])


def augmentation_counts(asked: list[str], outcomes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind in `asked` the `originals` taken, of these `made` (some `unchanged`), `dropped` by reason."""
    kinds: dict[str, dict[str, Any]] = {
        kind: {"kind": kind, "originals": 0, "made": 0, "unchanged": 0, "dropped": {}}
        for kind in sorted(asked)
    }
    for row in sorted(outcomes, key=lambda row: row["dropped"] or ""):
        reason, count = row["dropped"], row["count_all"]
        counts = kinds[row["augmentation"]]
        counts["originals"] += count
        if reason is None:
            counts["made"] += count
            counts["unchanged"] += count if row["unchanged"] else 0
        else:
            counts["dropped"][reason] = counts["dropped"].get(reason, 0) + count
    return list(kinds.values())


def _said(counts: dict[str, Any]) -> str:
    unchanged = [f"{counts['unchanged']:,} of them unchanged"] if counts["unchanged"] else []
    dropped = [f"{count:,} dropped ({reason})" for reason, count in counts["dropped"].items()]
    made = f"{counts['kind']} {counts['made']:,} of {counts['originals']:,}"
    return ", ".join([made, *unchanged, *dropped])


def windows(work: Work) -> Outcome:
    """Pack documents into windows: a part file at a time, each split and augmentation by itself."""
    recipe = work.recipe
    parts = [part for name, made in work.inputs.items() if name != "tokenizer" for part in made.parts]
    items = ray.data.from_items([{"part": str(part)} for part in parts], override_num_blocks=len(parts))
    tokenizer_path = work.inputs["tokenizer"].path / "tokenizer.json"
    packed = map_tables(items, _PackParts(tokenizer_path, recipe.window), batch_size=1).materialize()
    dropped = int(packed.sum("dropped") or 0)
    packed = map_tables(packed, _real_windows)
    rows = write_parts(packed, work.directory, windows_schema(recipe.window), ["window_id"])
    counts = _split_counts(work.directory, dropped, recipe)
    summary = f"{rows:,} windows of {recipe.window}: " + ", ".join(
        f"{counts[split]:,} {split}" for split in SPLITS
    )
    return Outcome(rows, summary, details={"windows": counts, "dropped_tokens": dropped})


class _PackParts:
    """Rows {part: path} to windows, with the number of tokens that were left over in column `dropped`."""

    def __init__(self, tokenizer_path: Path, window: int) -> None:
        self.tokenizer_path, self.window = tokenizer_path, window

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        bpe = _tokenizer(self.tokenizer_path)
        for path in batch["part"].to_pylist():
            table = pq.read_table(path)
            groups = pa.TableGroupBy(table, ["split", "augmentation"]).aggregate([]).to_pylist()
            for group in sorted(groups, key=lambda g: (g["split"], g["augmentation"] or "")):
                made, dropped = pack(_group_of(table, **group), bpe, self.window)
                yield _with_dropped(made, dropped, self.window)


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    """One a worker, not one a task: a tokenizer that has encoded leaves megabytes behind it when it goes."""
    return load_tokenizer(path)


def _group_of(table: pa.Table, split: str, augmentation: str | None) -> pa.Table:
    same = (
        pc.is_null(table["augmentation"])
        if augmentation is None
        else pc.equal(table["augmentation"], augmentation)
    )
    return table.filter(pc.and_(pc.equal(table["split"], split), same))


def _with_dropped(made: pa.Table, dropped: int, window: int) -> pa.Table:
    """`made` and one row without tokens that carries the count."""
    names = made.schema.names
    counts = pa.array([0] * made.num_rows, pa.int64())
    carrier = {name: pa.nulls(1, made.schema.field(name).type) for name in names} | {
        "dropped": pa.array([dropped])
    }
    nullable = pa.schema(
        [field.with_nullable(True) for field in made.schema] + [pa.field("dropped", pa.int64())]
    )
    filled = pa.table({**{name: made[name] for name in names}, "dropped": counts}, schema=nullable)
    return pa.concat_tables([filled, pa.table(carrier, schema=nullable)])


def _real_windows(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_valid(table["window_id"]))


def _split_counts(directory: Path, dropped: int, recipe: Recipe) -> dict[str, int]:
    counts = count_values(sorted(directory.glob("part-*")), "split")
    for split in SPLITS:
        if not counts[split]:
            filters = [name for name in _FILTERS if getattr(recipe.cleaning, name)]
            less = (
                f"let cleaning ({', '.join(filters)}) remove less, " if filters and split == "train" else ""
            )
            raise UserError(
                f"corpus: the {split} split is too small for one window of {recipe.window} tokens "
                f"({dropped:,} tokens were left over in all splits): {less}set window lower, or bring more "
                "text"
            )
    return {split: counts[split] for split in SPLITS}


# --- order -------------------------------------------------------------------------------


def training_set(work: Work) -> Outcome:
    """The training windows in their final order: easy to hard, or by id."""
    keys = ["difficulty", "window_id"] if work.recipe.difficulty else ["window_id"]
    rows = write_parts(read_parts(work.source.parts, "train"), work.directory, _schema_of(work.source), keys)
    return Outcome(rows, f"{rows:,} windows, {rows * work.recipe.window:,} target tokens")


def _schema_of(artifact: Artifact) -> pa.Schema:
    return pq.read_schema(artifact.parts[0])
