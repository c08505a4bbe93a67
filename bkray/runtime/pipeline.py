"""The whole way: from a recipe to a trained model and a report, going on wherever an earlier run stopped.

recipe ─► shards ─► plan ─► budget ─► each stage that has no artifact yet ─► summary.json, report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray.data.exceptions import ExecutionTimeoutError

from bkray.augmentation import check_augmentations
from bkray.config import Recipe, UserError, dump_yaml, load_recipe, read_yaml
from bkray.config.model import ImportModel
from bkray.config.training import PLACEMENT
from bkray.corpus import list_shards
from bkray.model import build_model, model_config
from bkray.reporting.progress import Progress
from bkray.reporting.trackers import check_trackers
from bkray.runtime import cleaning, distillation, leakage, prepare, scoring
from bkray.runtime.artifacts import Artifact, write_manifest, writing
from bkray.runtime.cluster import check_budget, check_budget_here, cluster, inside_job
from bkray.runtime.evaluation import evaluation, forgetting
from bkray.runtime.exits import stood_still
from bkray.runtime.folder import RUN, check_kind, check_out, claimed, locked, make_folder
from bkray.runtime.nearest import nearest
from bkray.runtime.plan import Plan, Stage, make_plan
from bkray.runtime.results import STARTUP, has_results, versions, write_results
from bkray.runtime.selection import selected
from bkray.runtime.stopwatch import Stopwatch, counting
from bkray.runtime.training import model
from bkray.runtime.work import Outcome, Work
from bkray.training import Checkpointer, GradientCache
from bkray.training.hardware import check_compiler, check_compiles
from bkray.training.state.start import check_scorer, check_start, check_vocabularies, vocabulary_size
from bkray.training.state.teachers import check_teachers

BUILDERS: dict[str, Callable[[Work], Outcome]] = {
    "documents": prepare.documents,
    "decontaminated": leakage.decontaminated,
    "deduplicated": cleaning.deduplicated,
    "filtered": cleaning.filtered,
    "nearest": nearest,
    "seen_before": leakage.seen_before,
    "tokenizer": prepare.tokenizer,
    "augmented": prepare.augmented,
    "windows": prepare.windows,
    "proxy": scoring.proxy,
    "scored": scoring.scored,
    "selected": selected,
    "training_set": prepare.training_set,
    "soft_targets": distillation.soft_targets,
    "model": model,
    "held_out_scores": scoring.held_out_scores,
    "forgetting": forgetting,
    "evaluation": evaluation,
}


@dataclass(frozen=True)
class RunResult:
    folder: Path
    artifacts: dict[str, Artifact]
    summary: dict | None
    """summary.json, where the run went as far as the evaluation."""


def plan_run(recipe: Recipe, out: Path, artifacts: Path | None = None) -> Plan:
    """The plan of `recipe` under `out`; raises UserError where the corpus or the folder cannot be used."""
    check_out(out)
    return make_plan(recipe, list_shards(recipe.corpus), out / recipe.name, artifacts)


def run_pipeline(
    recipe: Recipe,
    out: Path,
    *,
    until: str = "evaluation",
    cpus: int | None = None,
    artifacts: Path | None = None,
    progress: Progress | None = None,
    earlier: float = 0.0,
) -> RunResult:
    """Build every stage up to `until`, in order; what is already there is kept.

    `earlier`: seconds that the command took before this call, for the ledger.
    Raises UserError before anything is written where the recipe, the folder or the machine does not fit.
    """
    called = time.perf_counter()
    progress = progress or Progress()
    plan = plan_run(recipe, out, artifacts)
    run = out / recipe.name
    stages = _up_to(plan, until)
    check_folder(run, recipe)
    check_models([recipe])
    check_words([recipe])
    check_trackers(recipe.training.trackers)
    found = {name: stage.find() for name, stage in stages.items()}
    if "model" in found and not found["model"]:
        Checkpointer(run / "checkpoints", stages["model"].key).check()
    complete = all(found.values()) and (until != "evaluation" or has_results(plan, run))
    if complete:
        progress.say(f"{run}: already complete, nothing to do")
        return RunResult(run, {n: a for n, a in found.items() if a}, _summary(run, until))
    if not all(found.values()):
        check_budget_here(recipe, cpus, out, plan.corpus_bytes)
    make_folder(run)
    with locked(run), claimed(run / RUN, dump_yaml(recipe), run / "checkpoints"):
        with counting(run / STARTUP, earlier=earlier + time.perf_counter() - called, keep=True) as watch:
            built = _build_all(plan, stages, cpus, progress, out, watch)
        if until == "evaluation":
            write_results(plan, built, run)
    return RunResult(run, built, _summary(run, until))


def rewrite_results(run: Path) -> str:
    """Write summary.json and report.html of a finished run again; returns the path of the report."""
    plan, built = finished_run(run)
    write_results(plan, built, run)
    return str(run / "report.html")


def finished_run(run: Path) -> tuple[Plan, dict[str, Artifact]]:
    """The plan of a finished run and all its artifacts; raises UserError where it is none."""
    if not (run / RUN).exists():
        raise UserError(f"{run} holds no run: name the folder of a finished one, for example runs/quickstart")
    recipe = load_recipe(run / RUN)
    plan = make_plan(recipe, list_shards(recipe.corpus), run)  # the folder may have another name by now
    found = {name: stage.find() for name, stage in plan.stages.items()}
    missing = [name for name, artifact in found.items() if artifact is None]
    if missing:
        raise UserError(
            f"{run} is not finished, {', '.join(missing)} is missing: run `bkray run` to go on with it"
        )
    return plan, {name: artifact for name, artifact in found.items() if artifact}


def _build_all(
    plan: Plan, stages: dict[str, Stage], cpus: int | None, progress: Progress, out: Path, startup: Stopwatch
) -> dict[str, Artifact]:
    built: dict[str, Artifact] = {}
    for name, stage in stages.items():
        if not (artifact := stage.find()):
            break
        built[name] = artifact
        progress.say(f"✓ {name:<13} already there: {artifact.manifest['summary']}")
    if len(built) == len(stages):
        return built
    with cluster(cpus) as there:
        check_budget(plan.recipe, there, out, plan.corpus_bytes)
        for name, stage in stages.items():
            if name not in built:
                with startup.paused():
                    built[name] = build_stage(plan, stage, built, there, progress)
    return built


def build_stage(
    plan: Plan,
    stage: Stage,
    built: dict[str, Artifact],
    cpus: int,
    progress: Progress,
    builder: Callable[[Work], Outcome] | None = None,
) -> Artifact:
    """The stage's artifact: the one that is there, or a new one made from `built`.

    What makes it is `builder`, or the one of its name. Raises UserError where it stands still.
    """
    if artifact := stage.find():
        return artifact
    with (
        progress.stage(stage.name) as line,
        counting(stage.path) as watch,
        writing(stage.path) as directory,
    ):
        inputs = {name: built[name] for name in stage.inputs}
        try:
            outcome = (builder or BUILDERS[stage.name])(Work(stage, plan, directory, inputs, cpus, line))
        except ExecutionTimeoutError as error:
            raise stood_still(stage.name) from error
        line.result = outcome.summary
        write_manifest(
            directory,
            {
                "stage": stage.name,
                "key": stage.key,
                "inputs": {name: source.key for name, source in stage.inputs.items()},
                "rows": outcome.rows,
                "removed": outcome.removed,
                "rejects": outcome.rejects,
                "summary": outcome.summary,
                "seconds": watch.seconds,
                "ledger": outcome.ledger.table() if outcome.ledger else {},
                "details": outcome.details,
                "configuration": plan.recipe.model_dump(mode="json"),
                "versions": versions(),
            },
        )
    artifact = stage.find()
    assert artifact is not None
    return artifact


def _up_to(plan: Plan, until: str) -> dict[str, Stage]:
    names = list(plan.stages)
    return {name: plan.stages[name] for name in names[: names.index(until) + 1]}


def check_folder(run: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds the run of another recipe, or something else."""
    path = run / RUN
    check_kind(path)
    if not path.exists():
        return
    anywhere = {f"training.{key}" for key in PLACEMENT}
    changed = [each for each in changes(path, recipe) if each[0] not in anywhere]
    if changed:
        shown = "\n".join(f"  {key}: {before!r} there, {now!r} now" for key, before, now in changed[:8])
        more = f"\n  and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise UserError(
            f"{run} holds the run of another recipe:\n{shown}{more}\n"
            "choose another --out, or name=… for this one"
        )


def changes(path: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Keys in which `recipe` is another than the one in the file at `path`, in order, with the value of
    each."""
    try:
        there = load_recipe(path).model_dump(mode="json")
    except UserError:
        there = read_yaml(path)  # of another version of bkray
    before, now = _flat(there), _flat(recipe.model_dump(mode="json"))
    keys = sorted(before.keys() | now.keys())
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def check_words(recipes: Iterable[Recipe]) -> None:
    """Raise UserError where the data or the translator of an augmentation is missing on this machine."""
    if not inside_job():  # there the workers' machines have them
        for recipe in recipes:
            check_augmentations(recipe.augmentation)


def check_models(recipes: Iterable[Recipe]) -> None:
    """Raise UserError where a model cannot be built, cached or compiled, or one that is named cannot be used.

    It takes no memory.
    """
    for recipe in recipes:
        _check_model(recipe)


def _check_model(recipe: Recipe) -> None:
    if recipe.training.start_from:
        check_start(Path(recipe.training.start_from), recipe.model)
    for setting, folder in recipe.given_models.items():
        if setting != "training.start_from" and setting not in recipe.teachers:
            check_scorer(setting, Path(folder), setting == "proxy.folder" and recipe.needs_hidden)
    check_vocabularies(recipe.tokenizer_models)
    training = recipe.training
    if training.compile and not inside_job():  # there the workers' machines do it
        check_compiler()
    if isinstance(recipe.model, ImportModel) or training.distillation or training.gradient_cache:
        _check_network(recipe)
    else:
        model_config(recipe.model, vocabulary_size(recipe))


def _check_network(recipe: Recipe) -> None:
    """On the meta device, for which torch imports its compiler: seconds, so only where it takes a network."""
    with torch.device("meta"):
        network = build_model(recipe.model, vocabulary_size(recipe))
    check_teachers(recipe, network)
    if recipe.training.gradient_cache:
        GradientCache(network, recipe.training.gradient_cache)
    if recipe.training.compile and isinstance(recipe.model, ImportModel):
        check_compiles(network, recipe.window)


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if isinstance(values, dict) and values:
        return {k: v for key, inner in values.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): list(values) if isinstance(values, tuple) else values}


def _summary(run: Path, until: str) -> dict | None:
    return json.loads((run / "summary.json").read_text()) if until == "evaluation" else None
