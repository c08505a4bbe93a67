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

    A share `share` of the training rows that are written is spoilt, in `kinds`; `others` are sections like
    `corpus` with text that is off the domain. Documents that are rejected are left out and counted as
    `rejected`. Raises UserError where the folder is there, a corpus cannot be used or too many are rejected.
    """
    if folder.exists():
        raise UserError(f"--pool {folder} is already there: name another folder")
    stream = _texts(others)
    counts: Counter[str] = Counter()
    with writing(folder) as partial:
        for split in SPLITS:
            spoilt = kinds if split == "train" else []
            read = _documents(recipe, split, counts if split == "train" else Counter())
            tables = contaminate(read, spoilt, share, recipe.seed, stream)
            with pq.ParquetWriter(partial / f"{split}.parquet", POOL, compression="zstd") as file:
                for table in tables:
                    file.write_table(table)
                    counts.update(table["kind"].to_pylist() if spoilt else [])
    return counts


def _documents(recipe: Recipe, split: str | None, counts: Counter[str]) -> Iterator[pa.Table]:
    """The documents of a recipe's corpus, in its order; adds what is rejected to `counts`."""
    accepted = rejected = 0
    for shard in list_shards(recipe.corpus):
        for table, rejects in read_shard(shard, recipe.corpus, recipe.cleaning, recipe.seed):
            accepted, rejected = accepted + table.num_rows, rejected + rejects.num_rows
            yield table if split is None else table.filter(pc.equal(table["split"], split))
    if rejected > recipe.cleaning.max_rejects * (accepted + rejected):
        raise UserError(
            f"corpus: {rejected:,} of {accepted + rejected:,} documents were rejected, more than "
            f"cleaning.max_rejects {recipe.cleaning.max_rejects:g}: mend the rows or raise it"
        )
    counts["rejected"] += rejected


def _texts(sections: list[str]) -> Iterator[str]:
    """The texts of other corpora, one of each by turns."""
    recipes = [
        parse_recipe(apply_overrides({"name": "other"}, [f"corpus={section}"]), f"--off-domain {section}")
        for section in sections
    ]
    tables = [_documents(recipe, None, Counter()) for recipe in recipes]
    streams = [(text for table in each for text in table["text"].to_pylist()) for each in tables]
    return (text for texts in zip_longest(*streams) for text in texts if text is not None)
