"""A comparison: every arm at the same budgets and seeds, each with the learning rate that served it best.

    data ─► tuning: arm x rate ─► best rate on validation ─► timing: interleaved steps of all arms ─┐
                                                                                                    ▼
    report.html ◄─ paired intervals on test ◄─ arm x budget x seed, at equal steps and at equal seconds

Runs are Ray tasks of one CPU each. One that has finished is not done again, one that was stopped goes on from
its checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.table import Table

from bkray.config import Recipe, UserError, parse_recipe
from bkray.config.comparison import Comparison, load_comparison
from bkray.corpus import Shard, list_shards, load_tokenizer
from bkray.corpus.mapped import map_windows
from bkray.corpus.windows import read_columns, tokens_array
from bkray.curriculum import CurriculumSampler
from bkray.evaluation import paired_difference, window_nats
from bkray.model import build_model
from bkray.reporting import ComparisonArm, ComparisonReport, ComparisonRow, RunLog
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Line, Progress
from bkray.reporting.report import write_comparison_report
from bkray.runtime.cluster import check_budget, check_budget_here, cluster
from bkray.runtime.distillation import map_soft_targets
from bkray.runtime.folder import COMPARISON, check_identity, check_out, claimed, locked, make_folder
from bkray.runtime.pipeline import check_models, check_words
from bkray.runtime.plan import Plan, make_plan
from bkray.runtime.precision import device_here
from bkray.runtime.results import spent
from bkray.runtime.training import gpu_share, run_training
from bkray.runtime.trials import has_result, prepare_data, read_result, running, trial_job, write_result
from bkray.training import Ledger, WindowData, interleaved_step_seconds, load_model
from bkray.training.divergence.recovery import Diverged
from bkray.training.state.start import vocabulary_size

_EVAL_BATCH = 16
_SAME_TIME = 0.02  # arms whose steps take the reference's time to within this share need no run of their own


@dataclass(frozen=True)
class Run:
    """One training run: an arm at a rate, so many steps, a seed; judged on `split`, or there to be timed."""

    arm: str
    lr: float
    steps: int
    seed: int
    split: str
    recipe: Recipe
    plan: Plan

    @property
    def folder(self) -> Path:
        return self.plan.stages["model"].path.parent

    @property
    def result(self) -> dict[str, Any] | None:
        """What the run left; None where it is not done."""
        return read_result(self.plan, self.recipe)


@dataclass(frozen=True)
class Budget:
    """The runs of an arm, one a seed, that get what so many steps of the reference take."""

    kind: str  # "steps" or "seconds": what is equal
    steps: int  # of the reference
    arm: str
    runs: list[Run]
    error: str = ""
    """Why there are none."""


class Runs:
    """Makes the runs of a comparison: same shards, same artifacts, a folder for each."""

    def __init__(self, recipes: dict[str, Recipe], folder: Path) -> None:
        self.recipes, self.folder = recipes, folder
        self._shards: dict[str, list[Shard]] = {}

    def run(self, arm: str, lr: float, steps: int, seed: int, split: str) -> Run:
        base = self.recipes[arm]
        recipe = self.recipe(arm, lr, steps)
        name = f"{arm}/{split}-lr{lr:g}-steps{steps}-seed{seed}"
        plan = make_plan(recipe, self.shards(base), self.folder / "runs" / name, self.folder / "artifacts")
        return Run(arm, lr, steps, seed, split, recipe.model_copy(update={"seed": seed}), plan)

    def recipe(self, arm: str, lr: float, steps: int) -> Recipe:
        """The arm's recipe for so many steps; raises UserError where that is too short for what it asks."""
        base = self.recipes[arm]
        tokens = steps * base.batch_windows * base.window
        values = base.model_dump(mode="json")
        values["training"] |= {"lr": lr, "tokens": tokens}
        return parse_recipe(values, f"arm {arm} for {steps:,} steps")

    def shards(self, recipe: Recipe) -> list[Shard]:
        key = recipe.corpus.model_dump_json()
        if key not in self._shards:
            self._shards[key] = list_shards(recipe.corpus)
        return self._shards[key]


def run_comparison(
    path: Path,
    overrides: tuple[str, ...] = (),
    out: Path = Path("runs"),
    cpus: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run the comparison at `path`; leaves results.json and report.html in `out`/<its name>.

    Raises UserError for what cannot work, before anything is written.
    """
    progress = progress or Progress()
    comparison, recipes = load_comparison(Path(path), tuple(overrides))
    folder = out / comparison.name
    check_out(out)
    identity = _identity(comparison, recipes)
    check_identity(folder / COMPARISON, identity)
    check_models(recipes.values())
    check_words(recipes.values())
    runs = Runs(recipes, folder)
    tuning = [
        runs.run(arm, lr, comparison.tuning_steps, comparison.seeds[0], "validation")
        for arm in recipes
        for lr in comparison.learning_rates
    ]
    for arm, steps in product(recipes, comparison.steps):
        runs.recipe(arm, comparison.learning_rates[0], steps)
    recipe, corpus_bytes = tuning[0].recipe, tuning[0].plan.corpus_bytes
    check_budget_here(recipe, cpus, out, corpus_bytes)
    make_folder(folder)
    with locked(folder), cluster(cpus) as there:
        check_budget(recipe, there, out, corpus_bytes)
        with claimed(folder / COMPARISON, identity, folder / "runs"):
            data = {run.arm: spent(prepare_data(run.plan, there, progress).values()) for run in tuning}
        if len(comparison.learning_rates) > 1:
            _execute("tuning", tuning, progress)
        rates = {arm: _best_rate([run for run in tuning if run.arm == arm]) for arm in recipes}
        seconds = _step_seconds(comparison, runs, rates, folder, progress)
        budgets = _budgets(comparison, runs, rates, seconds, {arm: wall for arm, (_, wall) in data.items()})
        _execute("runs", list({run.folder: run for run in _in_order(budgets)}.values()), progress)
    report = _report(comparison, budgets, tuning, rates, seconds, data)
    write_atomically(folder / "results.json", json.dumps(report.as_dict(), indent=2))
    write_comparison_report(folder / "report.html", report)
    for kind in dict.fromkeys(row.kind for row in report.rows):
        progress.console.print(_table(report, kind))
    progress.say(f"report  {folder / 'report.html'}\nfigures {folder / 'results.json'}")
    return folder


def _identity(comparison: Comparison, recipes: dict[str, Recipe]) -> str:
    """What the finished runs depend on; more budgets and seeds may join them."""
    shared = comparison.model_dump(mode="json", include={"reference", "tuning_steps", "learning_rates"})
    return json.dumps([shared, {arm: recipe.model_dump(mode="json") for arm, recipe in recipes.items()}])


# --- running ---------------------------------------------------------------------------------------


def _execute(name: str, runs: Sequence[Run], progress: Progress) -> None:
    """Do what is not done yet, in order, as many at a time as there are CPUs, and GPUs if any."""
    with progress.stage(name) as line:
        left = [run for run in runs if not run.result]
        if other := [run.folder for run in left if has_result(run.plan)]:
            progress.say(
                f"made anew, as finished runs are of other text or of another bkray: {len(other)}, "
                f"the first {other[0]}; set another name to keep them"
            )
        pending = [_train.options(num_gpus=gpu_share(run.recipe.training)).remote(run) for run in left]
        while pending:
            done, pending = ray.wait(pending, timeout=1.0)
            ray.get(done)
            _show(runs, left, pending, line)
        line.result = f"{len(runs)} runs, {len(runs) - len(left)} of them there before"


def _show(runs: Sequence[Run], left: Sequence[Run], pending: Sequence[Any], line: Line) -> None:
    folders = {f"{run.folder.parent.name}/{run.folder.name}": run.folder for run in left if not run.result}
    line.update(f"{len(runs) - len(pending)} of {len(runs)} finished; {running(folders)}".rstrip("; "))


@ray.remote(num_cpus=1, max_retries=2)
def _train(run: Run) -> None:
    """Train, judge on the run's split, write result.json; a run that diverges says so there."""
    started = time.perf_counter()
    job = trial_job(run.plan, run.recipe)
    device = device_here()
    try:
        run_training(job, 0, device)
    except Diverged as error:
        return write_result(job, {"error": str(error)})
    details = json.loads((job.export / "config.json").read_text())["training"]
    held_out = read_columns(job.window_parts, ["tokens", "target_bytes"], run.split)
    network = load_model(job.export).to(device)
    windows = torch.from_numpy(tokens_array(held_out)).long().to(device)
    nats = torch.cat([window_nats(network, part) for part in windows.split(_EVAL_BATCH)])
    result = {
        "steps": details["steps"],
        "tokens": details["tokens"],
        "flops": Ledger(details["ledger"]).total_flops,
        "training_seconds": sum(details["ledger"][kind]["seconds"] for kind in ("training", "optimizer")),
        "seconds": time.perf_counter() - started,
        "nats": nats.tolist(),
        "bytes": held_out["target_bytes"].to_pylist(),
    }
    write_result(job, result)


def _read(run: Run) -> dict[str, Any]:
    assert run.result
    return run.result


def _bits_per_byte(result: dict[str, Any]) -> float:
    if "error" in result:
        return math.inf
    return math.fsum(result["nats"]) / sum(result["bytes"]) / math.log(2.0)


def _tried(runs: Sequence[Run]) -> dict[float, float]:
    """Bits per byte by rate; none where there is one rate, which nobody tries."""
    return {run.lr: _bits_per_byte(_read(run)) for run in runs} if len(runs) > 1 else {}


def _best_rate(runs: list[Run]) -> float:
    tried = _tried(runs)
    if not tried:
        return runs[0].lr
    best = min(tried, key=lambda lr: tried[lr])
    if not math.isfinite(tried[best]):
        raise UserError(
            f"arm {runs[0].arm}: every learning rate of {sorted(tried)} diverged; the first says: "
            f"{_read(runs[0])['error']}: try lower learning_rates"
        )
    return best


# --- time ------------------------------------------------------------------------------------------


def _step_seconds(
    comparison: Comparison, runs: Runs, rates: dict[str, float], folder: Path, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of interleaved steps by arm, measured once, while nothing else of ours runs."""
    path = folder / "timing.json"
    if not path.exists():
        # the first steps of the longest run: what changes over training is as there, and no schedule ends
        steps = max(*comparison.steps, comparison.timing_rounds + 10)
        timed = [runs.run(arm, rates[arm], steps, comparison.seeds[0], "timing") for arm in rates]
        cores = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes())
        with progress.stage("timing") as line:
            gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
            task = _time_steps.options(num_cpus=cores, num_gpus=gpus)
            timing = task.remote(timed, comparison.timing_rounds)
            write_atomically(path, json.dumps(ray.get(timing), indent=2))
            line.result = f"{comparison.timing_rounds} interleaved steps of each arm"
    return json.loads(path.read_text())


@ray.remote
def _time_steps(runs: list[Run], rounds: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    device = device_here()
    jobs = [trial_job(run.plan, run.recipe) for run in runs]
    arms = {}
    for run, job in zip(runs, jobs, strict=True):
        torch.manual_seed(run.seed)
        model = build_model(run.recipe.model, load_tokenizer(job.tokenizer).get_vocab_size())
        arms[run.arm] = model.to(device), run.recipe
    windows = [map_windows(job.training_parts) for job in jobs]
    count, recipe = min(map(len, windows)), runs[0].recipe
    sampler = CurriculumSampler(
        np.zeros(count), recipe.batch_windows, rounds + 10, start=1.0, seed=runs[0].seed
    )
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)
    # which tokens are kept takes no other time
    reference = np.zeros((count, recipe.window), dtype=np.float16)
    none = np.zeros((0, recipe.window + 1), dtype=np.int32)
    data = {
        run.arm: WindowData(there, none, reference, map_soft_targets(job.soft_target_parts))
        for run, job, there in zip(runs, jobs, windows, strict=True)
    }
    return interleaved_step_seconds(arms, data, sampler, rounds)


def _relative_time(seconds: dict[str, list[float]], arm: str, reference: str) -> float:
    """Median over the rounds of an arm's step time over the reference's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[arm], seconds[reference], strict=True))


def _budgets(
    comparison: Comparison,
    runs: Runs,
    rates: dict[str, float],
    seconds: dict[str, list[float]],
    data: dict[str, float],
) -> list[Budget]:
    """What is compared, cheapest first; `data`: seconds of the data stages by arm."""
    budgets = []
    kinds = ("steps", "seconds") if comparison.equal_seconds else ("steps",)
    for steps, kind, (arm, lr) in product(sorted(comparison.steps), kinds, rates.items()):
        taken = steps
        if kind == "seconds":
            taken = _steps_in_equal_time(steps, arm, comparison.reference, seconds, data)
        try:
            seeded = [runs.run(arm, lr, taken, seed, "test") for seed in comparison.seeds]
            budgets.append(Budget(kind, steps, arm, seeded))
        except UserError as error:
            more = data[arm] - data[comparison.reference]
            why = f"{error}" if taken > 0 else f"no time left: data stages take {more:+,.1f} s"
            budgets.append(Budget(kind, steps, arm, [], why))
    return budgets


def _in_order(budgets: list[Budget]) -> list[Run]:
    """Their runs, cheapest budgets first, and seed by seed."""
    found = [(budget, run) for budget in budgets for run in budget.runs]
    return [run for _, run in sorted(found, key=lambda p: (p[0].steps, p[0].kind == "seconds", p[1].seed))]


def _steps_in_equal_time(
    steps: int, arm: str, reference: str, seconds: dict[str, list[float]], data: dict[str, float]
) -> int:
    """How many steps of `arm` take, with its data stages, as long as `steps` of the reference with its own.

    `data`: seconds of the data stages by arm. 0 or less where those of `arm` leave no time.
    """
    sooner = (data[reference] - data[arm]) / statistics.median(seconds[reference])
    taken = round((steps + sooner) / _relative_time(seconds, arm, reference))
    return steps if abs(taken / steps - 1) < _SAME_TIME else taken


# --- results ---------------------------------------------------------------------------------------


def _report(
    comparison: Comparison,
    budgets: list[Budget],
    tuning: list[Run],
    rates: dict[str, float],
    seconds: dict[str, list[float]],
    data: dict[str, tuple[Ledger, float]],
) -> ComparisonReport:
    arms = []
    for arm, lr in rates.items():
        mine = [run for run in tuning if run.arm == arm]
        arms.append(
            ComparisonArm(
                name=arm,
                parameters=_parameters(mine[0].recipe),
                lr=lr,
                tried=_tried(mine),
                step_seconds=statistics.median(seconds[arm]),
                relative_time=_relative_time(seconds, arm, comparison.reference),
                data_seconds=data[arm][1],
            )
        )
    of_reference = {(b.kind, b.steps): b.runs for b in budgets if b.arm == comparison.reference}
    rows = [_row(budget, of_reference[budget.kind, budget.steps], data[budget.arm][0]) for budget in budgets]
    curves = {
        budget.arm: RunLog.read(budget.runs[0].folder / "metrics.jsonl")
        for budget in budgets
        if (budget.kind, budget.steps) == ("steps", max(comparison.steps))
    }
    return ComparisonReport(comparison.name, comparison.reference, arms, rows, curves)


def _parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        network = build_model(recipe.model, vocabulary_size(recipe))
    return sum(parameter.numel() for parameter in network.parameters())


def _row(budget: Budget, reference: list[Run], data: Ledger) -> ComparisonRow:
    """A line of the table; `data` is what the stages before the arm's models spent, which each run pays."""
    row = ComparisonRow(kind=budget.kind, reference_steps=budget.steps, arm=budget.arm)
    if budget.error:
        return replace(row, error=budget.error)
    results, others = [_read(run) for run in budget.runs], [_read(run) for run in reference]
    row = replace(row, steps=budget.runs[0].steps)
    failed = next((result["error"] for result in (*results, *others) if "error" in result), "")
    if failed:
        return replace(row, error=failed)
    bits = [_bits_per_byte(result) for result in results]
    row = replace(
        row,
        bits_per_byte=statistics.fmean(bits),
        by_seed=bits,
        seconds=statistics.fmean(result["training_seconds"] for result in results),
        flops=data.total_flops + statistics.fmean(result["flops"] for result in results),
    )
    if budget.runs == reference:
        return row
    return replace(row, difference=_difference(results, others))


def _difference(
    results: list[dict[str, Any]], others: list[dict[str, Any]]
) -> tuple[float, float, float] | None:
    """Bits per byte less the others', and its 95 % interval, paired by seed and window.

    Tokenizers of other training text cut the held-out text otherwise: then by seed alone, and an interval
    needs two.
    """
    if results[0]["bytes"] == others[0]["bytes"]:
        mine, theirs = (np.array([result["nats"] for result in group]) for group in (results, others))
        interval = paired_difference(mine, theirs, np.array(results[0]["bytes"]))
    elif len(results) > 1:
        bits = ([_bits_per_byte(result) for result in group] for group in (results, others))
        mine, theirs = (np.array(group)[:, None] * math.log(2.0) for group in bits)
        interval = paired_difference(mine, theirs, np.ones(1))
    else:
        return None
    return interval.bits_per_byte, interval.low, interval.high


def _table(report: ComparisonReport, kind: str) -> Table:
    table = Table(
        *("reference's steps", "arm", "steps", "bits per byte", f"less {report.reference}", "95 %"),
        title=f"at equal {kind}",
        box=None,
        header_style="bold",
    )
    for row in (row for row in report.rows if row.kind == kind):
        shown = [f"{row.bits_per_byte:.4f}" if row.bits_per_byte else row.error[:40], "", ""]
        if row.difference:
            mean, low, high = row.difference
            shown[1:] = [f"{mean:+.4f}", f"{low:+.4f} … {high:+.4f}"]
        table.add_row(f"{row.reference_steps:,}", row.arm, f"{row.steps:,}", *shown)
    return table
