"""A sweep with Ray Tune: data stages first, once for all trials that share them, then the trials.

    space ─► points ─► training sets (Ray Data, shared) ─► trials (Ray Tune, ASHA) ─► winner.yaml, report

A trial trains with one worker inside Tune's own process: Train nested in Tune with ASHA hangs on few CPUs
(Ray issue 54305). Points are drawn before anything starts, because each needs its data.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import Result
from ray.tune.schedulers import ASHAScheduler
from rich.table import Table

from bkray.config import Recipe, UserError, dump_yaml
from bkray.config.sweep import Choice, Sweep, Uniform, load_sweep, trial_recipe
from bkray.corpus import list_shards
from bkray.corpus.windows import read_columns
from bkray.reporting import RunLog, SweepReport, Trial
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Line, Progress
from bkray.reporting.report import write_sweep_report
from bkray.runtime.artifacts import Artifact
from bkray.runtime.beside import end_actors, run_beside
from bkray.runtime.cluster import check_budget, check_budget_here, cluster
from bkray.runtime.folder import SWEEP, check_identity, check_out, claimed, locked, make_folder
from bkray.runtime.pipeline import check_models, check_words
from bkray.runtime.plan import Plan, make_plan
from bkray.runtime.precision import device_here
from bkray.runtime.training import Job, gpu_share, run_training
from bkray.runtime.trials import prepare_data, read_result, run_key, running, trial_job, write_result
from bkray.training import Ledger
from bkray.training.divergence.recovery import Diverged

METRIC = "bits_per_byte"
BASELINE = "baseline"


@dataclass(frozen=True)
class Candidate:
    """One point of the space, its recipe and plan."""

    name: str
    point: dict[str, Any]
    recipe: Recipe
    plan: Plan

    @property
    def key(self) -> str:
        return run_key(self.plan, self.recipe)

    @property
    def result(self) -> dict[str, Any] | None:
        """What the trial left when it had finished; its `error` where it diverged."""
        return read_result(self.plan, self.recipe)


def run_sweep(
    path: Path,
    overrides: tuple[str, ...] = (),
    out: Path = Path("runs"),
    cpus: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run the sweep at `path`; leaves trials.json, report.html and winner.yaml in `out`/<sweep name>.

    A trial that has finished, or diverged, is not run again, unless its text has changed; one that failed in
    another way is. Raises UserError for what cannot work, before anything is written.
    """
    progress = progress or Progress()
    sweep, values = load_sweep(Path(path), tuple(overrides))
    folder = out / sweep.name
    check_out(out)
    candidates = _candidates(sweep, values, folder)
    identity = _identity(sweep, values)
    check_identity(folder / SWEEP, identity)
    if _complete(folder, candidates):
        progress.say(f"{folder}: already complete, nothing to do")
        return folder
    check_models(one.recipe for one in candidates)
    check_words(one.recipe for one in candidates)
    recipe, corpus_bytes = candidates[0].recipe, candidates[0].plan.corpus_bytes
    check_budget_here(recipe, cpus, out, corpus_bytes)
    make_folder(folder)
    with locked(folder), cluster(cpus) as there:
        check_budget(recipe, there, out, corpus_bytes)
        with claimed(folder / SWEEP, identity, folder / "trials"):
            prepared = {one.name: prepare_data(one.plan, there, progress) for one in candidates}
        with progress.stage("trials") as line:
            results = _tune(sweep, candidates, folder, there, line)
            line.result = f"{len(candidates)} trials"
    trials = [_trial(one, results.get(one.name), prepared[one.name]) for one in candidates]
    _write_results(sweep, candidates, trials, folder, progress)
    return folder


# --- the points ------------------------------------------------------------------------------------


def _candidates(sweep: Sweep, values: dict[str, Any], folder: Path) -> list[Candidate]:
    """The baseline and `sweep.trials` distinct points."""
    points = [sweep.baseline, *sample_points(sweep)] if sweep.baseline else sample_points(sweep)
    names = [BASELINE] if sweep.baseline else []
    names += [f"trial-{number:02d}" for number in range(1, len(points) - len(names) + 1)]
    recipes = [trial_recipe(sweep, values, point, name) for name, point in zip(names, points, strict=True)]
    shards = list_shards(recipes[0].corpus)
    return [
        Candidate(
            name, point, recipe, make_plan(recipe, shards, folder / "trials" / name, folder / "artifacts")
        )
        for name, point, recipe in zip(names, points, recipes, strict=True)
    ]


def sample_points(sweep: Sweep) -> list[dict[str, Any]]:
    """Up to `sweep.trials` distinct points of the space, the same for the same seed."""
    rng = np.random.default_rng(sweep.seed)
    domains = {key: _domain(domain) for key, domain in sweep.space.items()}
    points: list[dict[str, Any]] = []
    for _ in range(20 * sweep.trials):  # a small space may hold fewer distinct points
        point = {key: _plain(domain.sample(random_state=rng)) for key, domain in domains.items()}
        if point not in points:
            points.append(point)
        if len(points) == sweep.trials:
            break
    return points


def _domain(domain: Choice | Uniform) -> Any:
    if isinstance(domain, Choice):
        return tune.choice(list(domain.values))
    if domain.low >= domain.high:
        raise UserError(f"{domain.kind}: low {domain.low} must be below high {domain.high}")
    return (
        tune.uniform(domain.low, domain.high)
        if domain.kind == "uniform"
        else tune.loguniform(domain.low, domain.high)
    )


def _plain(value: Any) -> Any:
    """YAML knows no numpy numbers, and nobody reads more than four digits of a setting."""
    value = value.item() if isinstance(value, np.generic) else value
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _identity(sweep: Sweep, values: dict[str, Any]) -> str:
    return json.dumps([sweep.model_dump(mode="json"), values], sort_keys=True)


def _complete(folder: Path, candidates: list[Candidate]) -> bool:
    """Whether the results are there, and of these candidates; trials.json is written last.

    A trial that was stopped early has a row in it and no result of its own; so has one that failed, which
    may have met a full disk and is tried again.
    """
    if not (folder / "winner.yaml").exists() or not (folder / "trials.json").exists():
        return False
    rows = json.loads((folder / "trials.json").read_text())
    if [row.get("key") for row in rows] != [one.key for one in candidates]:
        return False
    return all(row["status"] != "failed" or one.result for row, one in zip(rows, candidates, strict=True))


# --- trials ----------------------------------------------------------------------------------------


def _tune(
    sweep: Sweep, candidates: list[Candidate], folder: Path, cpus: int, line: Line
) -> dict[str, Result]:
    """Run all candidates, `cpus` at a time; {name: result}."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's other output is not silent at verbose=0
    state = folder / ".ray_tune"
    shutil.rmtree(state, ignore_errors=True)
    resources = {"cpu": 1, "gpu": gpu_share(candidates[0].recipe.training)}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable, candidates=candidates), resources),
        param_space={"number": tune.grid_search(list(range(len(candidates))))},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            scheduler=ASHAScheduler(
                time_attr="step",
                max_t=candidates[0].recipe.steps,
                grace_period=min(sweep.grace_steps, candidates[0].recipe.steps),
                reduction_factor=sweep.reduction_factor,
            ),
            max_concurrent_trials=cpus,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(state.absolute()),
            verbose=0,
        ),
    )
    grid = run_beside(tuner.fit, lambda: line.update(_progress(candidates)), end_actors)
    shutil.rmtree(state, ignore_errors=True)
    results = [grid[number] for number in range(len(grid))]
    return {candidates[result.config["number"]].name: result for result in results if result.config}


def _progress(candidates: list[Candidate]) -> str:
    """How many trials have gone all the way, and the steps that the others have logged."""
    left = [one for one in candidates if not one.result]
    folders = {one.name: one.plan.stages["model"].path.parent for one in left}
    done = len(candidates) - len(left)
    return f"{done} of {len(candidates)} finished; {running(folders)}".rstrip("; ")


def _trainable(config: dict[str, Any], candidates: list[Candidate]) -> None:
    """One trial, in its own process; one that has finished or diverged only says so again."""
    candidate = candidates[config["number"]]
    if not candidate.result:
        _train(candidate)
    assert candidate.result
    if "error" in candidate.result:
        raise Diverged(candidate.result["error"])
    tune.report({**candidate.result, "finished": True})


def _train(candidate: Candidate) -> None:
    job = trial_job(candidate.plan, candidate.recipe)
    started = time.perf_counter()
    reporter = _TuneReporter(job, quiet=candidate.name == BASELINE)
    try:
        run_training(job, 0, device_here(), reporter)
    except Diverged as error:
        return write_result(job, {"error": str(error)})
    details = json.loads((job.export / "config.json").read_text())["training"]
    flops = Ledger(details["ledger"]).total_flops
    last = {METRIC: reporter.last, "step": details["steps"], "flops": flops}
    return write_result(job, {**last, "seconds": time.perf_counter() - started})


class _TuneReporter(RunLog):
    """A run log that also tells Tune the held-out bits per byte, unless it is `quiet` until the end.

    The baseline is quiet: a scheduler stops only trials that report.
    """

    def __init__(self, job: Job, quiet: bool) -> None:
        super().__init__(job.metrics)
        self.quiet, self.steps = quiet, job.recipe.steps
        self.started = time.perf_counter()
        self.last: float | None = None
        windows = read_columns(job.window_parts, ["target_bytes"], "validation")["target_bytes"]
        shown = windows[: job.recipe.training.eval_windows].to_pylist()
        self.tokens_per_byte = len(shown) * job.recipe.window / sum(shown)

    def log(self, step: int, **values: Any) -> None:
        super().log(step, **values)
        if "validation_loss" in values:
            self.last = values["validation_loss"] * self.tokens_per_byte / math.log(2.0)
            if not self.quiet and step < self.steps:
                seconds = time.perf_counter() - self.started
                tune.report(
                    {
                        METRIC: self.last,
                        "step": step,
                        "flops": values["total_flops"],
                        "seconds": seconds,
                        "finished": False,
                    }
                )


# --- results ---------------------------------------------------------------------------------------


def _trial(candidate: Candidate, result: Result | None, prepared: dict[str, Artifact]) -> Trial:
    """The row of one trial; its cost includes the stages that prepared its data, paid in full."""
    name, point, baseline = candidate.name, candidate.point, candidate.name == BASELINE
    if result is None or result.error is not None or not result.metrics or METRIC not in result.metrics:
        return Trial(name, point, "failed", baseline=baseline, error=_error(candidate, result))
    metrics = result.metrics
    flops, seconds = float(metrics["flops"]), float(metrics["seconds"])
    for artifact in prepared.values():
        flops += Ledger(artifact.manifest["ledger"]).total_flops
        seconds += artifact.manifest["seconds"]
    return Trial(
        name,
        point,
        status="finished" if metrics["finished"] else "stopped early",
        bits_per_byte=float(metrics[METRIC]),
        flops=flops,
        seconds=seconds,
        baseline=baseline,
    )


def _error(candidate: Candidate, result: Result | None) -> str:
    """Why a trial failed: the message of its own if it diverged, else the last line of what Tune says."""
    if candidate.result and "error" in candidate.result:
        return candidate.result["error"]
    return str(result.error).strip().splitlines()[-1] if result and result.error else "it reported nothing"


def _write_results(
    sweep: Sweep, candidates: list[Candidate], trials: list[Trial], folder: Path, progress: Progress
) -> None:
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        raise UserError(
            f"sweep {sweep.name}: no trial finished; the first says: {trials[0].error or trials[0].status}"
        )
    best = min(finished, key=lambda trial: trial.bits_per_byte or math.inf)
    winner = next(one for one in candidates if one.name == best.name)
    recipe = dump_yaml(winner.recipe.model_copy(update={"name": f"{sweep.name}-winner"}))
    report = SweepReport(name=sweep.name, trials=trials, winner=best.name, recipe=recipe)
    write_sweep_report(folder / "report.html", report)
    write_atomically(folder / "winner.yaml", recipe)
    rows = [_row(trial, one) for trial, one in zip(trials, candidates, strict=True)]
    write_atomically(folder / "trials.json", json.dumps(rows, indent=2))
    progress.console.print(_table(trials, best))
    for trial, one in zip(trials, candidates, strict=True):
        if trial.status == "failed":
            again = "" if one.result else " (the same command tries it again)"
            progress.say(f"{trial.name} failed: {trial.error}{again}")
    progress.say(f"report  {folder / 'report.html'}\nwinner  {folder / 'winner.yaml'}")


def _row(trial: Trial, candidate: Candidate) -> dict[str, Any]:
    return {
        "name": trial.name,
        "key": candidate.key,
        "parameters": dict(trial.parameters),
        "status": trial.status,
        "error": trial.error,
        METRIC: trial.bits_per_byte,
        "flops": trial.flops,
        "seconds": trial.seconds,
        "baseline": trial.baseline,
    }


def _table(trials: list[Trial], best: Trial) -> Table:
    keys = sorted({key for trial in trials if not trial.baseline for key in trial.parameters})
    table = Table(
        "trial", *keys, "bits per byte", "FLOPs", "seconds", "status", box=None, header_style="bold"
    )
    for trial in trials:
        values = ["off" if trial.baseline else str(trial.parameters.get(key, "")) for key in keys]
        numbers = [
            f"{trial.bits_per_byte:.4f}" if trial.bits_per_byte else "",
            f"{trial.flops:.3g}" if trial.flops else "",
            f"{trial.seconds:.0f}" if trial.seconds else "",
        ]
        table.add_row(trial.name + (" (best)" if trial is best else ""), *values, *numbers, trial.status)
    return table
