"""The raw pool of a corpus: its splits, some training rows spoilt and labelled, to judge filters by."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray.config import Recipe, UserError, apply_overrides, parse_recipe
from bkray.corpus import SPLITS, list_shards
from bkray.corpus.contamination import POOL, contaminate
from bkray.runtime.artifacts import writing
from bkray.runtime.reading import Reading

REJECTED = "rejects.jsonl"
"""Lies among the splits, so it is no Parquet file: those are read as text where the folder is a corpus."""


def make_pool(
    recipe: Recipe, folder: Path, others: list[str], kinds: list[str], share: float
) -> Counter[str]:
    """Write the splits of the recipe's corpus under `folder`; return the training rows of each kind.

    A share `share` of the training rows that are written is spoilt, in `kinds`; `others` are sections like
    `corpus` with text that is off the domain, of which as much is read as is needed. What is rejected of any
    goes to rejects.jsonl and is counted as `rejected`, of the others as `rejected off_domain`. Raises
    UserError where the folder is there, a corpus cannot be used or too many of its documents are rejected.
    """
    if folder.exists():
        raise UserError(f"--pool {folder} is already there: name another folder")
    corpus, off_domain = _reading("corpus", recipe), [_other(recipe, section) for section in others]
    stream = _texts(off_domain)
    counts: Counter[str] = Counter()
    with writing(folder) as partial:
        for split in SPLITS:
            spoilt = kinds if split == "train" else []
            tables = contaminate(_documents(corpus, split, recipe.seed), spoilt, share, recipe.seed, stream)
            with pq.ParquetWriter(partial / f"{split}.parquet", POOL, compression="zstd") as file:
                for table in tables:
                    file.write_table(table)
                    counts.update(table["kind"].to_pylist() if spoilt else [])
        for reading in off_domain:
            reading.check()
        _write_rejects([corpus, *off_domain], partial / REJECTED)
    counts["rejected"] = corpus.rejects.num_rows
    counts["rejected off_domain"] = sum(reading.rejects.num_rows for reading in off_domain)
    return counts


def _reading(setting: str, recipe: Recipe) -> Reading:
    return Reading(setting, recipe.corpus, list_shards(recipe.corpus), recipe.cleaning)


def _other(recipe: Recipe, section: str) -> Reading:
    """Of the corpus in `section`, cleaned as the recipe says."""
    setting = f"--off-domain {section}"
    parsed = parse_recipe(apply_overrides({"name": "other"}, [f"corpus={section}"]), setting)
    try:
        return _reading(setting, recipe.model_copy(update={"corpus": parsed.corpus}))
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error


def _documents(reading: Reading, split: str, seed: int) -> Iterator[pa.Table]:
    """The documents of a split, in the corpus's order."""
    for table in reading.documents(seed):
        yield table.filter(pc.equal(table["split"], split))


def _texts(readings: list[Reading]) -> Iterator[str]:
    """The texts of other corpora, one of each by turns."""
    tables = [reading.documents(0) for reading in readings]
    streams = [(text for table in each for text in table["text"].to_pylist()) for each in tables]
    return (text for texts in zip_longest(*streams) for text in texts if text is not None)


def _write_rejects(readings: list[Reading], path: Path) -> None:
    """A line a rejected document, with the corpus that it is of."""
    with path.open("w", encoding="utf-8") as file:
        for reading in readings:
            for row in reading.rejects.to_pylist():
                file.write(json.dumps({"corpus": reading.setting, **row}, ensure_ascii=False) + "\n")
