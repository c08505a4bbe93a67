"""Transfer: phases that are runs of their own, each from the model of the one before.

    phases/<recipe>-<hash>/ ─► … ─► <name>/, the run on the target ─► transfer.json, transfer.html

The hash of a phase is that of its recipe, its corpus and the phase before, so that what was pretrained once
is found again by every transfer under the same --out. What the target holds out is taken out of every text
that comes before it.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from bkray.config import Recipe, UserError
from bkray.config.corpus import AnyCorpus
from bkray.config.training import PLACEMENT
from bkray.config.transfer import held_out_of, load_transfer, phase_recipe, target_of
from bkray.corpus import Shard, list_shards
from bkray.reporting import TransferPhase, TransferReport
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Progress
from bkray.reporting.report import write_transfer_report
from bkray.reporting.trackers import check_trackers
from bkray.runtime.artifacts import key_of
from bkray.runtime.cluster import check_budget_here, cluster
from bkray.runtime.folder import check_out, locked, make_folder
from bkray.runtime.pipeline import (
    RunResult,
    build_stage,
    check_folder,
    check_words,
    plan_run,
    run_pipeline,
)
from bkray.runtime.plan import make_plan


@dataclass(frozen=True)
class Phase:
    """A phase as it will run: in `out`/<name of its recipe>."""

    name: str
    recipe: Recipe
    out: Path
    corpus_bytes: int

    @property
    def run(self) -> Path:
        return self.out / self.recipe.name


def run_transfer(
    path: Path,
    overrides: tuple[str, ...] = (),
    out: Path = Path("runs"),
    cpus: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Run the phases of the file at `path` that are not done yet; returns the last one's run.

    Raises UserError for what cannot work in any phase, before anything is trained.
    """
    progress = progress or Progress()
    check_out(out)
    phases = plan_phases(Path(path), tuple(overrides), out)
    for phase in phases:
        check_folder(phase.run, phase.recipe)
    missing = [phase for phase in phases if not (phase.run / "report.html").exists()]
    check_words([phase.recipe for phase in missing])
    for phase in missing:
        check_trackers(phase.recipe.training.trackers)
        check_budget_here(phase.recipe, cpus, out, phase.corpus_bytes)
    with cluster(cpus) if missing else nullcontext():  # one for all phases
        for phase in missing[1:]:
            _read(phase, cpus, progress)
        done = [_run(phase, cpus, progress) for phase in phases]
    folder = phases[-1].run
    report = TransferReport(folder.name, [_phase(*each, folder) for each in zip(phases, done, strict=True)])
    write_atomically(folder / "transfer.json", json.dumps(report.as_dict(), indent=2))
    write_transfer_report(folder / "transfer.html", report)
    progress.say(f"phases  {folder / 'transfer.html'}")
    return done[-1]


def plan_phases(path: Path, overrides: tuple[str, ...], out: Path) -> list[Phase]:
    """Every phase of the file at `path`, with its recipe and folder; none need have run."""
    transfer, values = load_transfer(path, overrides)
    *_, last = values
    target = target_of(values[last], f"{path}, phase {last}")
    carved = any(shard.carve for shard in _shards(target.corpus, f"{path}, phase {last}"))
    phases: list[Phase] = []
    key = ""
    for name, given in values.items():
        origin = f"{path}, phase {name}"
        before = (phases[-1].recipe, phases[-1].run) if phases else None
        recipe = phase_recipe(given, before, origin)
        shards = _shards(recipe.corpus, origin)
        folder, called = out, transfer.name
        if name != last:
            recipe = held_out_of(recipe, target, carved, origin)
            key = _key(recipe, shards, key)
            folder, called = out / "phases", f"{recipe.name}-{key}"
        recipe = recipe.model_copy(update={"name": called})
        phases.append(Phase(name, recipe, folder, sum(shard.text_bytes for shard in shards)))
    return phases


def _shards(corpus: AnyCorpus, origin: str) -> list[Shard]:
    try:
        return list_shards(corpus)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def _key(recipe: Recipe, shards: list[Shard], before: str) -> str:
    """Of all that a phase depends on; the phase before, whose model it starts from, has the key `before`."""
    replay = recipe.training.replay
    alone = _alone(recipe) if before else recipe.model_copy(update={"evaluation": None})
    made = make_plan(alone, shards, Path()).stages["evaluation"].key
    kept = alone.model_dump(
        mode="json", exclude={"name": True, "training": set(PLACEMENT)}, exclude_none=True
    )
    return key_of("phase", before, made, kept, replay and replay.share, bool(recipe.evaluation))


def _alone(recipe: Recipe) -> Recipe:
    """A phase's recipe without what comes from the runs before it, which need not be there."""
    training = recipe.training.model_copy(update={"start_from": None, "replay": None})
    return recipe.model_copy(update={"training": training, "evaluation": None})


def _read(phase: Phase, cpus: int | None, progress: Progress) -> None:
    """Read the text of a later phase, so that what is wrong with it shows before others have trained."""
    plan = plan_run(_alone(phase.recipe), phase.out)
    if plan.stages["documents"].find():
        return
    progress.say(f"{phase.name}: its text, before anything is trained")
    make_folder(phase.run)
    with locked(phase.run), cluster(cpus) as there:
        build_stage(plan, plan.stages["documents"], {}, there, progress)


def _run(phase: Phase, cpus: int | None, progress: Progress) -> RunResult:
    progress.say(f"{phase.name}: {phase.run}")
    return run_pipeline(phase.recipe, phase.out, cpus=cpus, progress=progress)


def _phase(phase: Phase, done: RunResult, folder: Path) -> TransferPhase:
    summary = done.summary
    assert summary
    ledger = summary["ledger"]
    return TransferPhase(
        name=phase.name,
        run=os.path.relpath(phase.run, folder),
        steps=summary["steps"],
        tokens_seen=ledger["tokens_seen"],
        flops=ledger["total_flops"],
        seconds=ledger["wall_s"],
        before=summary.get("start", {}).get("bits_per_byte"),
        after=summary["held_out"]["bits_per_byte"],
        pool=summary.get("pool"),
    )
