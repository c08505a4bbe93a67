"""What sweeps and comparisons share: many runs, each of one worker, on artifacts that they have in common."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bkray.config import Recipe
from bkray.reporting import RunLog
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Progress
from bkray.runtime.artifacts import Artifact
from bkray.runtime.pipeline import build_stage
from bkray.runtime.plan import Plan
from bkray.runtime.training import Job, own_folder, pool_parts

_RESULT = "result.json"


def prepare_data(plan: Plan, cpus: int, progress: Progress) -> dict[str, Artifact]:
    """The stages before the model; those that an earlier run shares are there already."""
    built: dict[str, Artifact] = {}
    for name, stage in plan.stages.items():
        if name == "model":
            break
        built[name] = build_stage(plan, stage, built, cpus, progress)
    return built


def trial_job(plan: Plan, recipe: Recipe) -> Job:
    """What the one worker of a run does, on the data of `plan`, in the run's folder.

    What another run has left in it goes: one of other text, which did not end or whose result counts no more.
    """
    stages = plan.stages
    run = stages["model"].path.parent
    inputs: dict[str, Artifact] = {}
    for name in stages["model"].inputs:
        artifact = stages[name].find()
        assert artifact, f"{stages[name].path} has vanished"
        inputs[name] = artifact
    job = Job(
        recipe=recipe,
        key=run_key(plan, recipe),
        training_parts=inputs["training_set"].parts,
        window_parts=inputs["windows"].parts,
        soft_target_parts=inputs["soft_targets"].parts if "soft_targets" in inputs else [],
        tokenizer=inputs["tokenizer"].path / "tokenizer.json",
        run=run,
        export=run / "model",
        start=plan.start,
        pool_parts=pool_parts(plan),
    )
    if not job.owns_folder:
        shutil.rmtree(run, ignore_errors=True)
    own_folder(job)
    return job


def run_key(plan: Plan, recipe: Recipe) -> str:
    """Of all that the weights depend on."""
    return f"{plan.stages['model'].key}-{recipe.seed}"


def read_result(plan: Plan, recipe: Recipe) -> dict[str, Any] | None:
    """What `write_result` was given; None where nothing was, or for other text or settings."""
    path = plan.stages["model"].path.parent / _RESULT
    values = json.loads(path.read_text()) if path.exists() else {}
    return values if values.pop("key", None) == run_key(plan, recipe) else None


def has_result(plan: Plan) -> bool:
    """Whether a run ended in the folder, be it one of other text."""
    return (plan.stages["model"].path.parent / _RESULT).exists()


def write_result(job: Job, values: Mapping[str, Any]) -> None:
    """Leave the result of a run, which is then finished.

    Its checkpoints go, unless it is an `error`: the batch that the run diverged on lies among them.
    """
    write_atomically(job.run / _RESULT, json.dumps({"key": job.key, **values}))
    if "error" not in values:
        shutil.rmtree(job.checkpoints, ignore_errors=True)


def running(folders: Mapping[str, Path]) -> str:
    """By name, the steps that runs have logged."""
    shown = []
    for name, folder in folders.items():
        log = folder / "metrics.jsonl"
        if log.exists() and (lines := RunLog.read(log)):
            shown.append(f"{name} step {lines[-1]['step']:,}")
    return ", ".join(shown)
