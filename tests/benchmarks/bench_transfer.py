"""What transfer saves: bench_transfer.py FILE [KEY=VALUE …] [--targets NAME=CORPUS …] [--epochs 0.25 …]
[--tuned 0.03 …] [--seeds 0 …] [--scratch KEY=VALUE …] [--cpus 2]

Trains each target from scratch for some shares of an epoch of its text (the levels), and from the one
pretrained model of a transfer file for others, every run with a completed schedule. Prints for each level
what it cost to reach it, the target alone and with pretraining in full, with the interval of the saving over
the seeds; and the same of all targets together, for which pretraining is paid once. Runs are ordinary runs
under --out, named after the target: those that are done are not done again. Costs are FLOPs of the ledger
without the final looks at held-out text.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bkray.config import Recipe, apply_overrides, parse_recipe
from bkray.config.loading import parse_section
from bkray.config.transfer import Target, load_transfer
from bkray.corpus import list_shards
from bkray.evaluation import break_even, cost_to_reach, paired_bootstrap
from bkray.reporting.progress import Progress
from bkray.runtime.cluster import cluster
from bkray.runtime.pipeline import RunResult, run_pipeline
from bkray.runtime.transfer import plan_phases

OF_TUNING = (
    "start_from",
    "start_vocabulary",
    "freeze",
    "unfreeze",
    "layer_decay",
    "replay",
    "activation_cache",
    "distillation",
)


@dataclass(frozen=True)
class Level:
    """What it cost to reach a level, a value a seed; `tuned` has None where no budget reached it."""

    target: str
    epochs: float
    bits: list[float]
    scratch: list[float]
    tuned: list[float | None]
    shared: float

    def row(self) -> str:
        """A line of a Markdown table: means over the seeds, of the saving the geometric one."""
        bits = f"{statistics.fmean(self.bits):.4f}" if self.bits else ""
        line = f"| {self.target} | {self.epochs:g} | {bits} | {statistics.fmean(self.scratch):.3g} |"
        costs = [cost for cost in self.tuned if cost is not None]
        if len(costs) < len(self.tuned):
            return f"{line} not reached by {len(self.tuned) - len(costs)} of {len(self.tuned)} | | | |"
        ratios = [plain / own for plain, own in zip(self.scratch, costs, strict=True)]
        saving = f"{statistics.geometric_mean(ratios):.2f}"
        if len(costs) > 1:
            _, low, high = paired_bootstrap(self.scratch, costs).ratio
            saving += f" ({low:.2f} to {high:.2f})"
        plain, own = statistics.fmean(self.scratch), statistics.fmean(costs)
        targets = break_even(self.shared, own, plain) or "none"
        return f"{line} {own:.3g} | {saving} | {plain / (self.shared + own):.2f} | {targets} |"


def together(levels: list[Level]) -> Level:
    """All targets as one: their costs added up, seed by seed."""
    tuned = [
        sum(cost for cost in costs if cost is not None) if None not in costs else None
        for costs in zip(*(level.tuned for level in levels), strict=True)
    ]
    scratch = [sum(costs) for costs in zip(*(level.scratch for level in levels), strict=True)]
    return Level(f"all {len(levels)}", levels[0].epochs, [], scratch, tuned, levels[0].shared)


class Bench:
    """Runs of one target of a transfer file, found again by their names."""

    def __init__(self, path: Path, overrides: list[str], scratch: list[str], out: Path) -> None:
        self.path, self.overrides, self.scratch, self.out = path, tuple(overrides), scratch, out
        self.progress, self.artifacts = Progress(), out / "shared-artifacts"
        self.transfer, self.values = load_transfer(path, self.overrides)
        self.name = self.transfer.name

    def from_scratch(self, tokens: int | None, seed: int) -> Recipe:
        """The target's recipe without what came before; its tokenizer is trained on the target."""
        pretrained = parse_recipe(self.values[self.transfer.phases[0].name])
        target = self.values[self.transfer.phases[-1].name]
        training = {k: v for k, v in (target.get("training") or {}).items() if k not in OF_TUNING}
        own: dict[str, Any] = {
            "name": f"{self.name}-scratch-{tokens}-{seed}",
            "seed": seed,
            "model": pretrained.model.model_dump(mode="json"),
            "tokenizer": pretrained.tokenizer.model_dump(mode="json"),
            "training": {**training, **({"tokens": tokens} if tokens else {})},
        }
        return parse_recipe(apply_overrides({**target, **own}, self.scratch))

    def epoch(self) -> int:
        """Tokens of the target's training text."""
        recipe = self.from_scratch(None, 0)
        return self._run(recipe, self.out, "training_set").artifacts["training_set"].rows * recipe.window

    def scratch_run(self, tokens: int, seed: int) -> tuple[float, float]:
        """Cost and bits per byte."""
        return _result(self._run(self.from_scratch(tokens, seed), self.out))

    def tuned_run(self, tokens: int, seed: int) -> tuple[float, float, float]:
        """Cost and bits per byte of the last phase, and the cost of those before."""
        name = f"name={self.name}-tuned-{tokens}-{seed}"
        given = (*self.overrides, name, f"seed={seed}", f"training.tokens={tokens}")
        *before, last = plan_phases(self.path, given, self.out)
        shared = [run_pipeline(phase.recipe, phase.out, progress=self.progress) for phase in before]
        return *_result(self._run(last.recipe, last.out)), sum(_result(run)[0] for run in shared)

    def _run(self, recipe: Recipe, out: Path, until: str = "evaluation") -> RunResult:
        return run_pipeline(recipe, out, until=until, artifacts=self.artifacts, progress=self.progress)


def _result(run: RunResult) -> tuple[float, float]:
    assert run.summary
    ledger = run.summary["ledger"]
    looks = ledger["by_kind"]["evaluation"]["flops"]
    return ledger["total_flops"] - looks, run.summary["held_out"]["bits_per_byte"]


def levels(bench: Bench, epochs: list[float], tuned: list[float], seeds: list[int]) -> Iterator[Level]:
    epoch = bench.epoch()
    print(f"An epoch of {bench.name} is {epoch:,} tokens.", flush=True)
    curves = {seed: [bench.tuned_run(round(share * epoch), seed) for share in tuned] for seed in seeds}
    for seed, curve in curves.items():
        shown = ", ".join(f"{bits:.4f} at {cost:.3g}" for cost, bits, _ in curve)
        print(f"{bench.name}, seed {seed}, tuned: {shown}", flush=True)
    for share in epochs:
        costs, bits = zip(*(bench.scratch_run(round(share * epoch), seed) for seed in seeds), strict=True)
        reached = [
            cost_to_reach(level, *list(zip(*curves[seed], strict=True))[:2])
            for seed, level in zip(seeds, bits, strict=True)
        ]
        yield Level(bench.name, share, list(bits), list(costs), reached, curves[seeds[0]][0][2])


def sharing(phase: str, corpora: dict[str, str], seeds: list[int]) -> str:
    """The override by which all targets share what `phase` trains: nothing that they hold out is in it."""
    parsed = [parse_section(Target, {"corpus": yaml.safe_load(text)}, text) for text in corpora.values()]
    carved = any(shard.carve for target in parsed for shard in list_shards(target.corpus))
    named = ", ".join(f"{name}: {text}" for name, text in corpora.items())
    drawn = f", seeds: {seeds}" if carved else ""
    return f"{phase}.cleaning.leakage={{held_out_of: {{{named}}}{drawn}}}"


def main(given: argparse.Namespace) -> None:
    def bench(*overrides: str) -> Bench:
        return Bench(given.file, [*overrides, *given.overrides], given.scratch, given.out.absolute())

    if corpora := dict(text.split("=", 1) for text in given.targets):
        transfer, _ = load_transfer(given.file)
        shared = sharing(transfer.phases[0].name, corpora, given.seeds)
        benches = [bench(shared, f"name={name}", f"corpus={text}") for name, text in corpora.items()]
    else:
        benches = [bench()]
    with cluster(given.cpus):
        found = [list(levels(one, given.epochs, given.tuned, given.seeds)) for one in benches]
    print(f"{len(given.seeds)} seeds")
    print(
        "| target | epochs | bits per byte | from scratch | tuned | saving | with pretraining | break-even |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for same in zip(*found, strict=True):
        for level in [*same, together(list(same))] if len(same) > 1 else same:
            print(level.row())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument(
        "--targets", nargs="+", default=[], metavar="NAME=CORPUS", help="one pretrained model"
    )
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--tuned", type=float, nargs="+", default=[0.03, 0.06, 0.12, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scratch", nargs="+", default=[], metavar="KEY=VALUE", help="of runs from scratch")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    main(parser.parse_args())
