"""What the filters save in training: bench_filters.py [KEY=VALUE …] [--out runs/filter-savings] [--cpus 2]

From ../shared/data, in OUT: 5,000 film reviews, split; the same with as many spoilt rows in the training
split (near-duplicates, off-domain, shuffled, boiler-plate: the raw pool); the comparison OUT/filters.yaml of
one model on the raw pool, on what each filter leaves of it, on half of it at random, and on its clean rows.
The trusted sample of the quality filter is the validation split, by which all arms choose their rate.

Levels are what the raw pool reaches with a quarter, half and all of an epoch of the clean text; the saving is
the ratio of the training steps that reach them, log-interpolated between an arm's completed runs, seed by
seed, with the 95 % interval of the paired bootstrap. Beside it the same with the processor time that the
filter's stages took added, in full, to each run. KEY=VALUE changes the comparison: seeds=[0,1,2,3,4].
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml
from bench_cleaning import paragraphs, pieces, reviews, web
from bench_transfer import shown_ratio

from bkray.config import parse_recipe
from bkray.config.comparison import load_comparison
from bkray.corpus.contamination import KINDS
from bkray.evaluation import Saving
from bkray.runtime.comparison import Runs, run_comparison
from bkray.runtime.contamination import make_pool
from bkray.runtime.exits import exit_codes

REVIEWS, WORDS = 5_000, 235
BUDGETS = [86, 172, 258, 344, 516, 689]
LEVELS = {"a quarter": 172, "half": 344, "one": 689}  # 1,410,944 tokens of clean text, 2,048 a step
FILTERS = ("deduplicated", "filtered")
NEAR = {"threshold": 0.6, "ngram": 2}


def write(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def make_data(out: Path) -> None:
    """OUT/raw and OUT/clean, of the same splits; made once."""
    target, others = out / "reviews.jsonl", out / "others.jsonl"
    write(target, reviews()[:REVIEWS])
    write(others, list(pieces(web() + paragraphs("train"), WORDS))[:REVIEWS])
    corpus = {"kind": "jsonl", "path": str(target), "validation": 0.12, "test": 0.2}
    recipe = parse_recipe({"name": "filters", "corpus": corpus})
    for name, kinds in (("raw", list(KINDS)), ("clean", [])):
        if not (out / name).exists():
            print(name, dict(make_pool(recipe, out / name, [f"{{kind: jsonl, path: {others}}}"], kinds, 0.5)))


def comparison(out: Path) -> dict[str, Any]:
    sample = {"kind": "parquet", "path": str(out / "raw" / "validation.parquet")}
    quality = {"cleaning.quality": {"sample": sample}}
    return {
        "name": "filters",
        "recipe": "base.yaml",
        "arms": {
            "raw": {},
            "near": {"cleaning.near": NEAR},
            "quality": quality,
            "near-and-quality": {"cleaning.near": NEAR, **quality},
            "random-half": {"selection": {"kind": "random", "keep": 0.5}},
            "clean": {"corpus": {"kind": "parquet", "path": str(out / "clean")}},
        },
        "reference": "raw",
        "learning_rates": [8e-3, 1.6e-2, 3.2e-2],
        "tuning_steps": LEVELS["half"],
        "steps": BUDGETS,
        "equal_seconds": False,
        "seeds": [0, 1, 2],
    }


def base(out: Path) -> dict[str, Any]:
    return {
        "name": "base",
        "corpus": {"kind": "parquet", "path": str(out / "raw")},
        "cleaning": {"exact": True},
        "tokenizer": {"vocab_size": 2048},
        "window": 128,
        "model": {"kind": "resnet_bk", "d_model": 128, "n_layers": 2},
        "training": {"batch_tokens": 2048, "optimizer": "muon", "eval_every": 1_000},
        "samples": None,
    }


def filter_seconds(folder: Path, spec: Path, overrides: tuple[str, ...], cpus: int) -> dict[str, float]:
    """What the filters' stages held the cores for, by arm: no less than the processor time they took."""
    _, recipes = load_comparison(spec, overrides)
    runs, seconds = Runs(recipes, folder), {}
    for arm in recipes:
        stages = runs.run(arm, 1e-2, 1, 0, "test").plan.stages
        made = [stages[name].find() for name in FILTERS if name in stages]
        seconds[arm] = cpus * sum(artifact.manifest["seconds"] for artifact in made if artifact)
    return seconds


def table(results: dict[str, Any], filters: dict[str, float]) -> None:
    """A line an arm and level, in Markdown; `filters`: seconds by arm."""
    step = next(arm["step_seconds"] for arm in results["arms"] if arm["name"] == results["reference"])
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for row in results["rows"]:
        points = curves.setdefault(row["arm"], [[] for _ in row["by_seed"]])
        for curve, bits in zip(points, row["by_seed"], strict=True):
            curve.append((float(row["steps"]), bits))
    print("| epochs | arm | bits per byte | steps | saving | with the filters' seconds |")
    print("|---|---|---|---|---|---|")
    for epochs, steps in LEVELS.items():
        raw = [next(point for point in curve if point[0] == steps) for curve in curves[results["reference"]]]
        for arm, points in curves.items():
            at = statistics.fmean(next(bits for at, bits in curve if at == steps) for curve in points)
            saving = Saving.of(raw, points)
            print(f"| {epochs} | {arm} | {at:.4f} | {_columns(saving, filters[arm] / step)} |")


def _columns(saving: Saving, more: float) -> str:
    """Steps, the saving, and that with `more` steps added to each seed's."""
    if saving.cost is None:
        return f"not reached by {saving.missed} of {len(saving.own)} seeds | |"
    most, least = ("at most ", "≥ ") if saving.at_most else ("", "")
    return f"{most}{saving.cost:.0f} | {shown_ratio(saving)} | {least}{saving.with_more(more):.2f}"


def main(out: Path, overrides: tuple[str, ...], cpus: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    make_data(out)
    spec = out / "filters.yaml"
    (out / "base.yaml").write_text(yaml.safe_dump(base(out)))
    spec.write_text(yaml.safe_dump(comparison(out), sort_keys=False))
    folder = run_comparison(spec, overrides, out, cpus)
    filters = filter_seconds(folder, spec, overrides, cpus)
    print(
        "seconds of the filters' stages:", {arm: round(spent, 1) for arm, spent in filters.items() if spent}
    )
    table(json.loads((folder / "results.json").read_text()), filters)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, default=Path("runs/filter-savings"))
    parser.add_argument("--cpus", type=int, default=2)
    given = parser.parse_args()
    with exit_codes():
        main(given.out.absolute(), tuple(given.overrides), given.cpus)
