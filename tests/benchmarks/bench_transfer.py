"""What transfer saves: bench_transfer.py FILE [KEY=VALUE …] [--epochs 0.25 …] [--tuned 0.03 …] [--seeds 0 …]

Trains the target of a transfer file from scratch for some shares of an epoch of its text (the levels), and
from the pretrained model for others, every run with a completed schedule. Prints for each level what it cost
to reach it, the target alone and with pretraining in full. Runs are ordinary runs under --out: those that are
done are not done again. Costs are FLOPs of the ledger without the final looks at held-out text.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bkray.config import Recipe, apply_overrides, parse_recipe
from bkray.config.transfer import load_transfer
from bkray.evaluation import break_even, cost_to_reach
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


class Bench:
    """Runs of one transfer file, found again by their names."""

    def __init__(self, path: Path, overrides: list[str], scratch: list[str], out: Path) -> None:
        self.path, self.overrides, self.scratch, self.out = path, tuple(overrides), scratch, out
        self.progress, self.artifacts = Progress(), out / "shared-artifacts"

    def from_scratch(self, tokens: int | None, seed: int) -> Recipe:
        """The target's recipe without what came before; its tokenizer is trained on the target."""
        transfer, values = load_transfer(self.path, self.overrides)
        pretrained = parse_recipe(values[transfer.phases[0].name])
        target = values[transfer.phases[-1].name]
        training = {k: v for k, v in (target.get("training") or {}).items() if k not in OF_TUNING}
        own: dict[str, Any] = {
            "name": f"{transfer.name}-scratch-{tokens}-{seed}",
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
        transfer, _ = load_transfer(self.path, self.overrides)
        name = f"name={transfer.name}-tuned-{tokens}-{seed}"
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


def rows(bench: Bench, epochs: list[float], tuned: list[float], seeds: list[int]) -> Iterator[str]:
    """Lines of a Markdown table, one a level, means over the seeds (the ratio's is geometric)."""
    epoch = bench.epoch()
    yield f"An epoch of the target is {epoch:,} tokens; {len(seeds)} seeds."
    yield "| epochs | bits per byte | from scratch | tuned | saving | with pretraining | break-even |"
    yield "|---|---|---|---|---|---|---|"
    curves = {seed: [bench.tuned_run(round(share * epoch), seed) for share in tuned] for seed in seeds}
    for level in epochs:
        scratch = {seed: bench.scratch_run(round(level * epoch), seed) for seed in seeds}
        reached = {
            seed: cost_to_reach(bits, *list(zip(*curves[seed], strict=True))[:2])
            for seed, (_, bits) in scratch.items()
        }
        bits = statistics.fmean(found for _, found in scratch.values())
        plain = statistics.fmean(cost for cost, _ in scratch.values())
        line = f"| {level:g} | {bits:.4f} | {plain:.3g} |"
        costs = [cost for cost in reached.values() if cost is not None]
        if len(costs) < len(seeds):
            yield f"{line} not reached by {len(seeds) - len(costs)} of {len(seeds)} | – | – | – |"
            continue
        shared = curves[seeds[0]][0][2]
        own = statistics.fmean(costs)
        saving = statistics.geometric_mean(
            scratch[seed][0] / cost for seed, cost in zip(seeds, costs, strict=True)
        )
        targets = break_even(shared, own, plain) or "none"
        yield f"{line} {own:.3g} | {saving:.2f} | {plain / (shared + own):.2f} | {targets} |"
    yield "Tuned: " + ", ".join(f"{bits:.4f} at {cost:.3g}" for cost, bits, _ in curves[seeds[0]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--tuned", type=float, nargs="+", default=[0.03, 0.06, 0.12, 0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scratch", nargs="+", default=[], metavar="KEY=VALUE", help="of runs from scratch")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    with cluster():
        made = Bench(given.file, given.overrides, given.scratch, given.out.absolute())
        for row in rows(made, given.epochs, given.tuned, given.seeds):
            print(row, flush=True)
