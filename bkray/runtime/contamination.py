"""The raw pool of a corpus: its splits, some training rows spoilt and labelled, to judge filters by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray.config import Recipe, UserError, apply_overrides, parse_recipe
from bkray.corpus import SPLITS, list_shards, read_shard
from bkray.corpus.contamination import POOL, contaminate
from bkray.runtime.artifacts import writing


def make_pool(
    recipe: Recipe, folder: Path, others: list[str], kinds: list[str], share: float
) -> Counter[str]:
    """Write the splits of the recipe's corpus under `folder`; return the training rows of each kind.

    A share `share` of the training rows is spoilt, in `kinds`; `others` are sections like `corpus` with text
    that is off the domain. Raises UserError where the folder is there or a corpus cannot be used.
    """
    if folder.exists():
        raise UserError(f"--pool {folder} is already there: name another folder")
    stream = _texts(others)
    counts: Counter[str] = Counter()
    with writing(folder) as partial:
        for split in SPLITS:
            spoilt = kinds if split == "train" else []
            tables = contaminate(_documents(recipe, split), spoilt, share, recipe.seed, stream)
            with pq.ParquetWriter(partial / f"{split}.parquet", POOL, compression="zstd") as file:
                for table in tables:
                    file.write_table(table)
                    counts.update(table["kind"].to_pylist() if spoilt else [])
    return counts


def _documents(recipe: Recipe, split: str | None = None) -> Iterator[pa.Table]:
    """The documents of a recipe's corpus, in its order."""
    for shard in list_shards(recipe.corpus):
        for table, _ in read_shard(shard, recipe.corpus, recipe.cleaning, recipe.seed):
            yield table if split is None else table.filter(pc.equal(table["split"], split))


def _texts(sections: list[str]) -> Iterator[str]:
    """The texts of other corpora, one of each by turns."""
    recipes = [
        parse_recipe(apply_overrides({"name": "other"}, [f"corpus={section}"]), f"--off-domain {section}")
        for section in sections
    ]
    streams = [(t for table in _documents(recipe) for t in table["text"].to_pylist()) for recipe in recipes]
    return (text for texts in zip_longest(*streams) for text in texts if text is not None)
