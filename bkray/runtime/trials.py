"""What sweeps and comparisons share: many runs, each of one worker, on artifacts that they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bkray.config import Recipe
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime.artifacts import Artifact
from bkray.runtime.pipeline import build_stage
from bkray.runtime.plan import Plan
from bkray.runtime.training import Job, pool_parts


def prepare_data(plan: Plan, cpus: int, progress: Progress) -> dict[str, Artifact]:
    """The stages before the model; those that an earlier run shares are there already."""
    built: dict[str, Artifact] = {}
    for name, stage in plan.stages.items():
        if name == "model":
            break
        built[name] = build_stage(plan, stage, built, cpus, progress)
    return built


def trial_job(plan: Plan, recipe: Recipe) -> Job:
    """What the one worker of a run does, on the data of `plan`; its folder is made."""
    stages = plan.stages
    run = stages["model"].path.parent
    run.mkdir(parents=True, exist_ok=True)
    inputs: dict[str, Artifact] = {}
    for name in stages["model"].inputs:
        artifact = stages[name].find()
        assert artifact, f"{stages[name].path} has vanished"
        inputs[name] = artifact
    return Job(
        recipe=recipe,
        key=f"{stages['model'].key}-{recipe.seed}",
        training_parts=inputs["training_set"].parts,
        window_parts=inputs["windows"].parts,
        soft_target_parts=inputs["soft_targets"].parts if "soft_targets" in inputs else [],
        tokenizer=inputs["tokenizer"].path / "tokenizer.json",
        run=run,
        export=run / "model",
        start=plan.start,
        pool_parts=pool_parts(plan),
    )


def running(folders: Mapping[str, Path]) -> str:
    """By name, the steps that runs which have no result yet have logged."""
    shown = []
    for name, folder in folders.items():
        log = folder / "metrics.jsonl"
        if log.exists() and not (folder / "result.json").exists() and (lines := RunLog.read(log)):
            shown.append(f"{name} step {lines[-1]['step']:,}")
    return ", ".join(shown)
