"""Active learning against its controls: the loop, random selection, and all windows, at equal total cost.

    data ─► for each seed: the loop (its kind) ─► what it cost ─► as many steps as that pays for:
                                                                  random selection in the same rounds
                                                                  all windows from the start
    report.html ◄─ paired intervals on test ◄─ every run, one after the other, with all of the cluster

Runs are made of artifacts (rounds.py): one that has finished is not done again, one that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.table import Table

from bkray.config import Recipe
from bkray.config.active import ActiveLearning, load_active
from bkray.config.preparation import Proxy, Selection
from bkray.corpus import Shard, list_shards
from bkray.corpus.windows import read_columns
from bkray.evaluation import paired_difference
from bkray.reporting import ActiveArm, ActiveReport, ActiveRound, RunLog
from bkray.reporting.files import write_atomically
from bkray.reporting.formats import share
from bkray.reporting.progress import Progress
from bkray.reporting.report import write_active_report
from bkray.runtime.artifacts import Artifact
from bkray.runtime.cluster import check_budget, check_budget_here, cluster
from bkray.runtime.folder import LOOP, check_identity, check_out, claimed, locked, make_folder
from bkray.runtime.pipeline import check_words
from bkray.runtime.plan import make_plan
from bkray.runtime.results import spent
from bkray.runtime.rounds import Built, DoneRound, LoopRun, LoopRunner
from bkray.runtime.trials import prepare_data
from bkray.training import Ledger

RANDOM, ALL = "random", "all"
_AGAIN = ("lost", "settling")  # what an interruption adds: it must not change how long the controls train


@dataclass(frozen=True)
class DoneRun:
    arm: str
    seed: int
    steps: int
    folder: Path
    rounds: list[DoneRound]
    evaluation: Artifact

    @property
    def artifacts(self) -> list[Artifact]:
        return [artifact for done in self.rounds for artifact in done.artifacts]


class Runs:
    """Makes the runs: same shards, same data artifacts, a folder for each arm and seed."""

    def __init__(self, active: ActiveLearning, recipe: Recipe, folder: Path, shards: list[Shard]) -> None:
        self.active, self.recipe, self.folder, self.shards = active, recipe, folder, shards
        self.plan = make_plan(recipe, shards, folder, folder / "artifacts")

    def prepare(self, cpus: int, progress: Progress) -> dict[str, Built]:
        """The data that all runs share."""
        built = prepare_data(self.plan, cpus, progress)
        shared = ("training_set", "windows", "tokenizer")
        return {name: Built(self.plan.stages[name], built[name]) for name in shared}

    def run(
        self, arm: str, selection: Selection | None, steps: int, seed: int, data: dict[str, Built]
    ) -> LoopRun:
        tokens = steps * self.recipe.batch_windows * self.recipe.window
        chosen = {
            "seed": seed,
            "selection": selection,
            "proxy": Proxy() if selection and selection.needs_proxy else None,
            "training": self.recipe.training.model_copy(update={"tokens": tokens}),
        }
        folder = self.folder / "runs" / f"{arm}-seed{seed}"
        plan = make_plan(
            self.recipe.model_copy(update=chosen), self.shards, folder, self.folder / "artifacts"
        )
        if selection is None:
            return LoopRun(plan, data, folder)
        return LoopRun(plan, data, folder, self.active.start, self.active.pool, self.active.rounds)


def run_active(
    path: Path,
    overrides: tuple[str, ...] = (),
    out: Path = Path("runs"),
    cpus: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run the loop at `path` and its controls; leaves results.json and report.html in `out`/<its name>.

    Raises UserError for what cannot work, before anything is trained.
    """
    progress = progress or Progress()
    active, recipe = load_active(Path(path), tuple(overrides))
    folder = out / active.name
    check_out(out)
    identity = _identity(active, recipe)
    check_identity(folder / LOOP, identity)
    if _complete(folder, active):
        progress.say(f"{folder}: already complete, nothing to do")
        return folder
    check_words([recipe])
    runs = Runs(active, recipe, folder, list_shards(recipe.corpus))
    check_budget_here(recipe, cpus, out, runs.plan.corpus_bytes)
    make_folder(folder)
    with locked(folder), cluster(cpus) as there:
        check_budget(recipe, there, out, runs.plan.corpus_bytes)
        with claimed(folder / LOOP, identity, folder / "runs"):
            data = runs.prepare(there, progress)
        done = [run for seed in active.seeds for run in _run_arms(runs, seed, data, there, progress)]
    report = _report(active, done)
    write_atomically(folder / "results.json", json.dumps(report.as_dict(), indent=2))
    write_active_report(folder / "report.html", report)
    progress.console.print(_table(report))
    progress.say(f"report  {folder / 'report.html'}\nfigures {folder / 'results.json'}")
    return folder


def _identity(active: ActiveLearning, recipe: Recipe) -> str:
    """What the finished runs depend on; more seeds may join them.

    Also on the workers: each pays for the optimizer, and so the controls' steps depend on their number.
    """
    shares = active.model_dump(mode="json", include={"selection", "start", "pool", "rounds"})
    return json.dumps([shares, recipe.model_dump(mode="json")])


def _complete(folder: Path, active: ActiveLearning) -> bool:
    """Whether the results of these seeds are there."""
    results = folder / "results.json"
    if not results.exists() or not (folder / "report.html").exists():
        return False
    return bool(json.loads(results.read_text())["seeds"] == list(active.seeds))


# --- running ---------------------------------------------------------------------------------------


def _run_arms(runs: Runs, seed: int, data: dict[str, Built], cpus: int, progress: Progress) -> list[DoneRun]:
    """The loop, then the controls for as many steps as cost the same."""
    selection, steps = runs.active.selection, runs.recipe.steps
    done: list[DoneRun] = []
    arms = {selection.kind: selection, RANDOM: selection.model_copy(update={"kind": RANDOM}), ALL: None}
    for arm, chosen in arms.items():
        taken = equal_steps(steps, done[0].rounds) if done else steps
        run = runs.run(arm, chosen, taken, seed, data)
        progress.say(f"{arm}, seed {seed}: {taken:,} steps")
        runner = LoopRunner(run, cpus, progress)
        rounds = runner.rounds()
        done.append(DoneRun(arm, seed, taken, run.folder, rounds, runner.evaluation(rounds[-1].model)))
    return done


def equal_steps(steps: int, rounds: Sequence[DoneRound]) -> int:
    """Steps of training alone that cost as many FLOPs as a loop of `steps` steps with its scoring."""
    training = sum(
        cost["flops"]
        for done in rounds
        for kind, cost in done.model.manifest["ledger"].items()
        if kind not in _AGAIN
    )
    return round(steps * (1.0 + sum(map(_selecting_flops, rounds)) / training))


def _selecting_flops(done: DoneRound) -> float:
    """What was spent to choose the windows that joined before the round."""
    return sum(_flops(artifact) for artifact in done.selecting.values())


def _flops(artifact: Artifact) -> float:
    return Ledger(artifact.manifest["ledger"]).total_flops


# --- results ---------------------------------------------------------------------------------------


def _report(active: ActiveLearning, done: list[DoneRun]) -> ActiveReport:
    arms, bytes_W = [], _column(done[0].evaluation, "target_bytes")
    by_arm = {arm: [run for run in done if run.arm == arm] for arm in dict.fromkeys(run.arm for run in done)}
    for arm, runs in by_arm.items():
        own = _arm(runs)
        if arm != RANDOM:
            interval = paired_difference(_nats(runs), _nats(by_arm[RANDOM]), bytes_W)
            own = replace(own, difference=(interval.bits_per_byte, interval.low, interval.high))
        arms.append(own)
    first = [run for run in done if run.seed == active.seeds[0]]
    return ActiveReport(
        name=active.name,
        kind=active.selection.kind,
        reference=RANDOM,
        seeds=active.seeds,
        arms=arms,
        curves={run.arm: _curve(run) for run in first},
        pools=[_pool(one) for one in first[0].rounds[1:]],
    )


def _nats(runs: list[DoneRun]) -> np.ndarray:
    return np.array([_column(run.evaluation, "nats") for run in runs])


def _column(artifact: Artifact, name: str) -> np.ndarray:
    return np.asarray(read_columns(artifact.parts, [name])[name].to_numpy())


def _arm(runs: list[DoneRun]) -> ActiveArm:
    """Means over the seeds."""
    bits = [run.evaluation.manifest["details"]["held_out"]["bits_per_byte"] for run in runs]
    ledgers = [spent(run.artifacts)[0].table() for run in runs]
    kinds = dict.fromkeys(kind for table in ledgers for kind in table)
    by_kind: dict[str, dict[str, Any]] = {
        kind: {
            name: fmean(table.get(kind, {}).get(name, 0) for table in ledgers)
            for name in ("flops", "tokens", "seconds")
        }
        for kind in kinds
    }
    return ActiveArm(
        name=runs[0].arm,
        steps=runs[0].steps,
        bits_per_byte=fmean(bits),
        by_seed=bits,
        unique_tokens=fmean(run.rounds[-1].model.manifest["details"]["unique_tokens"] for run in runs),
        by_kind=by_kind,
        rounds=[_round([run.rounds[number] for run in runs]) for number in range(len(runs[0].rounds))],
    )


def _round(rounds: list[DoneRound]) -> ActiveRound:
    return ActiveRound(
        windows=rounds[0].windows,
        steps=rounds[0].steps,
        scored=sum(done.selecting["pool"].rows if done.selecting else 0 for done in rounds[:1]),
        training_flops=fmean(_flops(done.model) for done in rounds),
        selecting_flops=fmean(map(_selecting_flops, rounds)),
        seconds=fmean(sum(one.manifest["seconds"] for one in done.artifacts) for done in rounds),
        validation_loss=fmean(done.model.manifest["details"]["validation_loss"] for done in rounds),
    )


def _curve(run: DoneRun) -> list[dict[str, Any]]:
    """The lines of the log, with the FLOPs of training and scoring up to each as `flops`."""
    lines, before, end = [], 0.0, 0
    rows = iter(RunLog.read(run.folder / "metrics.jsonl"))
    for done in run.rounds:
        before, end = before + _selecting_flops(done), end + done.steps
        for row in rows:
            lines.append({**row, "flops": row["total_flops"] + before})
            if row["step"] >= end:
                break
    return lines


def _pool(done: DoneRound) -> tuple[np.ndarray, np.ndarray]:
    """The uncertainty of a round's pool, and of what was added of it."""
    return _column(done.selecting["scored"], "uncertainty"), _column(
        done.selecting["selected"], "uncertainty"
    )


def _table(report: ActiveReport) -> Table:
    heads = (
        "arm",
        "steps",
        "windows",
        "bits per byte",
        f"less {report.reference}",
        "95 %",
        "FLOPs",
        "scoring",
    )
    table = Table(*heads, title="at equal total cost", box=None, header_style="bold")
    for arm in report.arms:
        shown = ["", ""]
        if arm.difference:
            mean, low, high = arm.difference
            shown = [f"{mean:+.4f}", f"{low:+.4f} … {high:+.4f}"]
        costs = [f"{arm.flops:.3g}", share(arm.selecting_flops, arm.flops)]
        bits = f"{arm.bits_per_byte:.4f}"
        table.add_row(arm.name, f"{arm.steps:,}", f"{arm.windows:,}", bits, *shown, *costs)
    return table
