"""Make the raw pool of a corpus, every row labelled, to judge filters by:

    python -m pipelines.contaminate RECIPE [key=value …] --pool FOLDER [--off-domain CORPUS …]

FOLDER gets train.parquet (text, kind, changed, origin), the held-out splits as they are, and rejects.jsonl;
a recipe reads it as `corpus: {kind: parquet, path: FOLDER}`. CORPUS is a section like the recipe's:
'{kind: jsonl, path: F}'.
"""

import argparse
from pathlib import Path

from bkray.config import load_recipe
from bkray.corpus.contamination import CLEAN, KINDS
from bkray.runtime.contamination import make_pool
from bkray.runtime.exits import exit_codes

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
    parser.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="of the rows of train.parquet that are spoilt: 0.5 adds one to each clean one",
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="default: all that there is text for")
    given = parser.parse_args()
    with exit_codes():
        kinds = given.kinds or [kind for kind in KINDS if kind != "off_domain" or given.off_domain]
        loaded = load_recipe(given.recipe, given.overrides)
        made = make_pool(loaded, given.pool, given.off_domain, kinds, given.share)
        rejected = ["rejected", *(["rejected off_domain"] if given.off_domain else [])]
        for kind in (CLEAN, *kinds, *rejected):
            print(f"{kind:19} {made[kind]:9,}")
