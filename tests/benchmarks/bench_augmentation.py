"""Augmentation: bench_augmentation.py [WORKERS [ROUNDS [KIND …]]], or bench_augmentation.py effect [KEY=V]

The stage `augmented` for every kind that works here, on one core and on WORKERS (2): seconds of the stage, in
clusters that take turns, each in a process of its own, and the ratio by round. With `effect`: the comparison
pipelines/comparisons/augmentation.yaml, every kind against as many steps on the originals alone, with paired
intervals on held-out text (overrides as for `bkray compare`; it leaves its runs in runs/augmentation).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bkray.augmentation import check_augmentations
from bkray.config import UserError, load_recipe
from bkray.reporting.progress import Progress
from bkray.runtime.comparison import run_comparison
from bkray.runtime.pipeline import run_pipeline

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pipelines" / "recipes" / "quickstart.yaml"
COMPARISON = ROOT / "pipelines" / "comparisons" / "augmentation.yaml"
KINDS = {
    "deletion": "{kind: deletion}",
    "synonym": "{kind: synonym}",
    "back_translation": "{kind: back_translation, share: 0.05}",
}


def overrides(kind: str) -> list[str]:
    plain = [f"{key}=null" for key in ("selection", "difficulty", "curriculum", "proxy")]
    return [f"augmentation=[{KINDS[kind]}]", "training.workers=1", *plain]


def stage_seconds(kind: str, cpus: int) -> float:
    """The seconds of the stage in a fresh cluster of `cpus`; the documents are made before."""
    with tempfile.TemporaryDirectory() as out:
        recipe = load_recipe(RECIPE, overrides(kind))
        built = run_pipeline(
            recipe, Path(out), until="augmented", cpus=cpus, progress=Progress(Console(quiet=True))
        )
        return built.artifacts["augmented"].manifest["seconds"]


def times(workers: int = 2, rounds: int = 3, *kinds: str) -> None:
    for kind in kinds or KINDS:
        try:
            check_augmentations(load_recipe(RECIPE, overrides(kind)).augmentation)
        except UserError as error:
            print(f"{kind}: left out: {error}")
            continue
        ratios = []
        for _ in range(rounds):
            one, several = (_in_process(kind, cpus) for cpus in (1, workers))
            ratios.append(one / several)
            print(f"  {kind:16} 1 worker {one:7.1f} s, {workers} workers {several:7.1f} s", flush=True)
        print(f"{kind}: {workers} workers are {statistics.median(ratios):.2f} times as fast", flush=True)


def _in_process(kind: str, cpus: int) -> float:
    command = [sys.executable, __file__, "stage", kind, str(cpus)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["effect"]:
        run_comparison(COMPARISON, tuple(given[1:]), Path("runs"))
    elif given[:1] == ["stage"]:
        print(stage_seconds(given[1], int(given[2])))
    else:
        times(*map(int, given[:2]), *given[2:])
