"""Make the raw pool of a corpus, every row labelled, to judge filters by:

    python -m pipelines.contaminate RECIPE [key=value …] --pool FOLDER [--off-domain CORPUS …]

FOLDER gets train.parquet (text, kind, changed, origin) and the held-out splits as they are; a recipe reads it
as `corpus: {kind: parquet, path: FOLDER}`. CORPUS is a section like the recipe's: '{kind: jsonl, path: F}'.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray.config import Recipe, UserError, apply_overrides, load_recipe, parse_recipe
from bkray.corpus import SPLITS, list_shards, read_shard
from bkray.corpus.contamination import CLEAN, KINDS, POOL, contaminate
from bkray.runtime.artifacts import writing
from bkray.runtime.exits import exit_codes


def documents(recipe: Recipe, split: str | None = None) -> Iterator[pa.Table]:
    """The documents of a recipe's corpus, in its order."""
    for shard in list_shards(recipe.corpus):
        for table, _ in read_shard(shard, recipe.corpus, recipe.cleaning, recipe.seed):
            yield table if split is None else table.filter(pc.equal(table["split"], split))


def texts(sections: list[str]) -> Iterator[str]:
    """The texts of other corpora, one of each by turns."""
    recipes = [
        parse_recipe(apply_overrides({"name": "other"}, [f"corpus={section}"]), f"--off-domain {section}")
        for section in sections
    ]
    streams = [(t for table in documents(recipe) for t in table["text"].to_pylist()) for recipe in recipes]
    return (text for texts in zip_longest(*streams) for text in texts if text is not None)


def make_pool(
    recipe: Recipe, folder: Path, others: list[str], kinds: list[str], share: float
) -> Counter[str]:
    """Write the splits under `folder`; return the rows of each kind in the training split."""
    if folder.exists():
        raise UserError(f"--pool {folder} is already there: name another folder")
    stream = texts(others)
    counts: Counter[str] = Counter()
    with writing(folder) as partial:
        for split in SPLITS:
            spoilt = kinds if split == "train" else []
            tables = contaminate(documents(recipe, split), spoilt, share, recipe.seed, stream)
            with pq.ParquetWriter(partial / f"{split}.parquet", POOL, compression="zstd") as file:
                for table in tables:
                    file.write_table(table)
                    counts.update(table["kind"].to_pylist() if spoilt else [])
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="YAML file of the recipe: its corpus and seed are taken")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--pool", type=Path, required=True, help="folder to write; it must not exist yet")
    parser.add_argument(
        "--off-domain", action="append", default=[], metavar="CORPUS", help="other text; repeatable"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the training rows to be spoilt")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="default: all that there is text for")
    given = parser.parse_args()
    with exit_codes():
        kinds = given.kinds or [kind for kind in KINDS if kind != "off_domain" or given.off_domain]
        loaded = load_recipe(given.recipe, given.overrides)
        made = make_pool(loaded, given.pool, given.off_domain, kinds, given.share)
        for kind in (CLEAN, *kinds):
            print(f"{kind:16} {made[kind]:9,}")
