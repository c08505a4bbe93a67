"""Transfer: phases that are runs of their own, each from the model of the one before.

    phases/<recipe>-<hash>/ ─► … ─► <name>/, the run on the target ─► transfer.json, transfer.html

The hash of a phase is that of all that its weights depend on, the phases before among it, so that what was
pretrained once is found again by every transfer under the same --out. What the target holds out is taken out
of every text that comes before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bkray.config import Recipe, UserError, dump_yaml, load_recipe
from bkray.config.corpus import AnyCorpus
from bkray.config.divergence import FallBack
from bkray.config.schedule import LossTrend, Plateau
from bkray.config.training import Training
from bkray.config.transfer import held_out_of, load_transfer, phase_recipe, target_of
from bkray.corpus import Shard, list_shards
from bkray.reporting import TransferPhase, TransferReport
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Progress
from bkray.reporting.report import write_transfer_report
from bkray.reporting.trackers import check_trackers
from bkray.runtime.artifacts import Artifact, key_of
from bkray.runtime.cluster import check_budget_here, cluster
from bkray.runtime.folder import RUN, check_kind, check_out, locked, make_folder
from bkray.runtime.pipeline import (
    RunResult,
    build_stage,
    changes,
    check_folder,
    check_models,
    check_words,
    plan_run,
    run_pipeline,
)
from bkray.runtime.plan import corpus_identity, digests, make_plan
from bkray.runtime.pool import check_window, find_pool
from bkray.training.state.export import damage
from bkray.training.state.start import check_vocabularies, vocabulary_size

_BESIDE = (
    "log_every",
    "eval_every",
    "eval_windows",
    "checkpoint_every",
    "keep_checkpoints",
    "max_failures",
    "trackers",
    "profile",
)
"""Keys of `training` that change no weight, unless something steers by what they give (`_without_looks`)."""
_SHOWN = 4  # keys of a difference that are named


@dataclass(frozen=True)
class Phase:
    """A phase as it will run: in `out`/<name of its recipe>."""

    name: str
    recipe: Recipe
    out: Path
    corpus_bytes: int
    kept: tuple[str, ...] = ()
    """Keys in which the run that is there began otherwise than it is asked for now, and stays as it is."""

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
    for phase in phases[:-1]:
        check_kind(phase.run / RUN)
    check_folder(phases[-1].run, phases[-1].recipe)
    missing = [phase for phase in phases if not _is_done(phase)]
    _check_models(missing)
    for phase in missing:
        with _of(phase):
            check_words([phase.recipe])
            check_trackers(phase.recipe.training.trackers)
            check_budget_here(phase.recipe, cpus, out, phase.corpus_bytes)
    for phase in phases[:-1]:
        _say_where(phase)
        _say_why_anew(phase, progress)
    with cluster(cpus) if missing else nullcontext():  # one for all phases
        for phase in missing[1:]:
            _read(phase, cpus, progress)
        _check_vocabularies(phases, missing, cpus, progress)
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
    held_out = _shards(target.corpus, f"{path}, phase {last}")
    phases: list[Phase] = []
    keys: dict[str, str] = {}
    for name, given in values.items():
        origin = f"{path}, phase {name}"
        recipe = phase_recipe(given, {phase.name: (phase.recipe, phase.run) for phase in phases}, origin)
        shards = _shards(recipe.corpus, origin)
        folder, called = out, transfer.name
        if name != last:
            carved = any(shard.carve for shard in held_out)
            named = _names(recipe, corpus_identity(target.corpus, held_out), origin)
            recipe = held_out_of(recipe, target, carved, named, origin)
            key = _key(recipe, shards, keys)
            folder, called = out / "phases", f"{recipe.name}-{key}"
            keys[str(folder / called / "model")] = key
        recipe = recipe.model_copy(update={"name": called})
        begun = _as_begun(recipe, folder / called) if name != last else recipe
        kept = tuple(key for key in (*_BESIDE, "samples") if _asked(key, begun) != _asked(key, recipe))
        phases.append(Phase(name, begun, folder, sum(shard.text_bytes for shard in shards), kept))
    return phases


def _shards(corpus: AnyCorpus, origin: str) -> list[Shard]:
    try:
        return list_shards(corpus)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def _names(recipe: Recipe, target: list[Any], origin: str) -> bool:
    """Whether the recipe keeps out already what the corpus of the identity `target` holds out."""
    leakage = recipe.cleaning.leakage
    for name, corpus in leakage.held_out_of.items() if leakage else ():
        shards = _shards(corpus, f"{origin}: cleaning.leakage.held_out_of.{name}")
        if corpus_identity(corpus, shards) == target:
            return True
    return False


def _key(recipe: Recipe, shards: list[Shard], before: Mapping[str, str]) -> str:
    """Of all that a phase's weights depend on; `before` has the keys of the phases before, by their models.

    Where text lies, how often is looked and what is written beside the weights is no part of it.
    """
    training = recipe.training
    start = before.get(training.start_from or "")
    alone = (_alone(recipe) if start else recipe).model_copy(update={"evaluation": None})
    alone = alone.model_copy(update={"training": _without_looks(alone)})
    teachers = [before.get(folder) or digests(setting, folder) for setting, folder in recipe.teachers.items()]
    distilled = training.distillation and training.distillation.model_dump(mode="json", exclude={"teachers"})
    made = make_plan(alone, shards, Path()).stages["model"].key
    replayed = _replayed(recipe, before) if start and training.replay else None
    return key_of("phase", start, made, replayed, teachers, distilled)


def _replayed(recipe: Recipe, before: Mapping[str, str]) -> Any:
    """The share that is replayed, and where not of the phase before, of which run."""
    replay = recipe.training.replay
    assert replay
    assert replay.run
    model = str(Path(replay.run) / "model")
    if model == recipe.training.start_from:
        return replay.share
    return [replay.share, before.get(model) or digests("training.replay.run", model)]


def _without_looks(recipe: Recipe) -> Training:
    """The recipe's `training` with the default of what changes no weight of it."""
    training, inert = recipe.training, set(_BESIDE)
    if isinstance(training.schedule, LossTrend):
        inert -= {"log_every"}
    if isinstance(training.schedule, Plateau) or (recipe.curriculum and recipe.curriculum.adjuster):
        inert -= {"eval_every", "eval_windows"}
    if isinstance(training.on_divergence, FallBack):
        inert -= {"eval_every", "eval_windows", "checkpoint_every"}
    return training.model_copy(update={key: Training.model_fields[key].default for key in inert})


def _as_begun(recipe: Recipe, run: Path) -> Recipe:
    """`recipe` with what its run, where there is one, began with and changes no weight."""
    try:
        there = load_recipe(run / RUN) if (run / RUN).exists() else recipe
    except UserError:  # of another version of bkray, whose keys may be others
        return recipe
    training = recipe.training.model_copy(update={key: getattr(there.training, key) for key in _BESIDE})
    return recipe.model_copy(update={"training": training, "samples": there.samples})


def _asked(key: str, recipe: Recipe) -> Any:
    return recipe.samples if key == "samples" else getattr(recipe.training, key)


def _alone(recipe: Recipe) -> Recipe:
    """A phase's recipe without what comes from the runs before it, which need not be there."""
    none = {"start_from": None, "replay": None, "distillation": None}
    training = recipe.training.model_copy(update=none)
    return recipe.model_copy(update={"training": training, "evaluation": None})


def _is_done(phase: Phase) -> bool:
    """Whether its run is finished and its model still whole.

    Raises UserError where a file of the model is not the one that was exported.
    """
    model = phase.run / "model"
    try:
        key = json.loads((model / "manifest.json").read_text())["key"]
        if not ((phase.run / "report.html").exists() and Artifact.find(model, key)):
            return False
        words = damage(model, json.loads((model / "config.json").read_text()))
    except (OSError, ValueError, KeyError):
        return False
    if words:
        raise UserError(f"phase {phase.name}, {model}: {words}; without that folder it is made anew")
    return True


def _check_models(missing: list[Phase]) -> None:
    """`check_models` of phases that are not done, and their pools, as far as that needs no model of one
    another's.

    Raises UserError as it does.
    """
    tokens: dict[str, int] = {}
    for phase in missing:
        recipe = _without_awaited(phase.recipe, tokens)
        with _of(phase):
            check_models([recipe])
            _check_pool(phase.recipe, missing)
        tokens[str(phase.run / "model")] = vocabulary_size(recipe)


def _without_awaited(recipe: Recipe, tokens: Mapping[str, int]) -> Recipe:
    """`recipe` without the models that are in `tokens`, but with as many tokens as its start's has."""
    training, tokenizer = recipe.training, recipe.tokenizer
    start, distillation = training.start_from or "", training.distillation
    if distillation:
        teachers = tuple(folder for folder in distillation.teachers if folder not in tokens)
        distillation = distillation.model_copy(update={"teachers": teachers})
    if start in tokens and training.start_vocabulary == "same":
        tokenizer = tokenizer.model_copy(update={"vocab_size": tokens[start]})
    known = {"start_from": None if start in tokens else start or None, "distillation": distillation}
    return recipe.model_copy(update={"training": training.model_copy(update=known), "tokenizer": tokenizer})


def _check_pool(recipe: Recipe, missing: list[Phase]) -> None:
    awaited = {str(phase.run): phase for phase in missing}
    setting, folder = recipe.pool or ("", "")
    if there := awaited.get(folder):
        check_window(setting, folder, there.recipe.window, recipe.window)
    else:
        find_pool(recipe, start_is_there=str(Path(recipe.training.start_from or "").parent) not in awaited)


def _read(phase: Phase, cpus: int | None, progress: Progress) -> None:
    """Read the text of a later phase, so that what is wrong with it shows before others have trained."""
    plan = plan_run(_alone(phase.recipe), phase.out)
    read = [stage for name, stage in plan.stages.items() if name in ("documents", "tokenizer")]
    missing = [stage for stage in read if not stage.inputs and not stage.find()]
    if not missing:
        return
    progress.say(f"{phase.name}: its text, before anything is trained")
    make_folder(phase.run)
    with _of(phase), locked(phase.run), cluster(cpus) as there:
        for stage in missing:
            build_stage(plan, stage, {}, there, progress)


def _check_vocabularies(
    phases: list[Phase], missing: list[Phase], cpus: int | None, progress: Progress
) -> None:
    """Raise UserError where a phase has the first one's vocabulary and names teachers, models that score or
    a pool of other runs that have another. The first one's tokenizer is made for that."""
    first, models = phases[0], {str(phase.run / "model") for phase in phases}
    overlapping = [phase.recipe.training.start_vocabulary == "overlap" for phase in phases]
    for number, phase in enumerate(phases):
        named = dict(phase.recipe.tokenizer_models)
        if phase.recipe.pool:
            setting, pool = phase.recipe.pool
            named[setting] = str(Path(pool) / "model")
        others = {setting: folder for setting, folder in named.items() if folder not in models}
        if phase in missing and number and others and not any(overlapping[1 : number + 1]):
            progress.say(f"{first.name}: its tokenizer, which {', '.join(others)} of {phase.name} must have")
            made = run_pipeline(first.recipe, first.out, until="tokenizer", cpus=cpus, progress=progress)
            tokenizer = str(made.artifacts["tokenizer"].path)
            check_vocabularies({f"phase {first.name}": tokenizer, **others})


def _run(phase: Phase, cpus: int | None, progress: Progress) -> RunResult:
    progress.say(f"{phase.name}: {phase.run}")
    if phase.kept:
        keys = ", ".join(phase.kept)
        progress.say(f"{phase.name} keeps the {keys} that it began with: {phase.run / RUN}")
    with _of(phase):
        return run_pipeline(phase.recipe, phase.out, cpus=cpus, progress=progress)


@contextmanager
def _of(phase: Phase) -> Iterator[None]:
    """Let a UserError say which phase's settings it names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"phase {phase.name}, whose settings are {phase.name}.key=value: {error}") from error


def _say_where(phase: Phase) -> None:
    """Note in the folder of a phase, which is found by what its text is, where that lies by now."""
    try:
        check_folder(phase.run, phase.recipe)
    except UserError:
        with locked(phase.run):
            write_atomically(phase.run / RUN, dump_yaml(phase.recipe))


def _say_why_anew(phase: Phase, progress: Progress) -> None:
    """Say, where the phase's recipe has run, but not as it is asked for, what the nearest run has other."""
    recipe_name, _, _ = phase.run.name.rpartition("-")
    others: dict[Path, list[str]] = {}
    for there in phase.out.glob(f"{recipe_name}-*/{RUN}"):
        with suppress(UserError):  # it cannot be read, which is not this transfer's concern
            others[there.parent] = _differing(there, phase.recipe)
    if others and phase.run not in others:
        nearest = min(others, key=lambda run: (len(others[run]), run))
        what = ", ".join(others[nearest][:_SHOWN]) or "text"
        more = f" and {len(others[nearest]) - _SHOWN} more keys" if len(others[nearest]) > _SHOWN else ""
        progress.say(f"{phase.name} is made anew: {nearest} has another {what}{more}")


def _differing(path: Path, recipe: Recipe) -> list[str]:
    beside = {"name", *(f"training.{key}" for key in _BESIDE)}
    keys = [key for key, _, _ in changes(path, recipe)]
    return [key for key in keys if key not in beside and not key.startswith(("samples", "evaluation"))]


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
        leaked=summary.get("removed", {}).get("decontaminated"),
    )
