"""Transfer: recipes that are run one after the other, each from the model of the one before."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from bkray.config.corpus import AnyCorpus, Leakage
from bkray.config.errors import UserError
from bkray.config.loading import apply_overrides, parse_recipe, parse_section, read_recipe, read_yaml
from bkray.config.recipe import Recipe
from bkray.config.section import Section


class Phase(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    recipe: str
    """Path of its recipe, relative to this file."""
    overrides: tuple[str, ...] = ()
    """key=value changes of the recipe."""


class Transfer(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the last phase's run, the one on the target."""
    phases: tuple[Phase, ...] = Field(min_length=2)
    """In order: pretraining first, the target last; between them, steps towards it."""

    @model_validator(mode="after")
    def _no_ambiguous_override(self) -> Transfer:
        names = [phase.name for phase in self.phases]
        for name in names:
            if name in {*Transfer.model_fields, *Recipe.model_fields}:
                raise ValueError(
                    f"phases: {name} is a key of a recipe or of this file, so that {name}.…=value would be "
                    "two things: choose another name"
                )
            if names.count(name) > 1:
                raise ValueError(f"phases: {name} is the name of two phases: choose another")
        return self


class Target(Section):
    """What of the last phase's recipe the phases before must keep out of their text."""

    corpus: AnyCorpus
    seed: int = 0


def load_transfer(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Transfer, dict[str, dict[str, Any]]]:
    """The transfer at `path` and the values of every phase's recipe, all of them checked.

    Of the phases before the target `cleaning.nearest` without `to` is to it, and `tokenizer.corpus` may be
    its name.
    An override that begins with a phase's name belongs to its recipe; of the others, those that begin with a
    key of the file change it, the rest belong to the recipe of the last phase, the target.
    """
    values = read_yaml(path)
    own = [given for given in overrides if _first(given) in Transfer.model_fields]
    transfer = parse_section(Transfer, apply_overrides(values, own), str(path))
    target = transfer.phases[-1].name
    given = {phase.name: list(phase.overrides) for phase in transfer.phases}
    for override in overrides:
        name, dot, rest = override.partition(".")
        if dot and name in given:
            given[name].append(rest)
        elif override not in own:
            given[target].append(override)
    recipes = {
        phase.name: apply_overrides(read_recipe(path.parent / phase.recipe), given[phase.name])
        for phase in transfer.phases
    }
    recipes[target]["name"] = transfer.name
    for name in given.keys() - {target}:
        corpus = recipes[target].get("corpus")
        _name_nearest(recipes[name], corpus)
        _name_vocabulary(recipes[name], target, corpus, f"{path}, phase {name}")
    before: dict[str, tuple[Recipe, Path]] = {}
    for name, own_values in recipes.items():  # before anything is looked for in a network
        before[name] = phase_recipe(own_values, before, f"{path}, phase {name}"), Path(name)
    return transfer, recipes


def _name_nearest(values: dict[str, Any], target: Any) -> None:
    """Let `cleaning.nearest` be to the corpus `target`, where it does not say to which."""
    cleaning = values.get("cleaning")
    nearest = cleaning.get("nearest") if isinstance(cleaning, Mapping) else None
    if isinstance(cleaning, Mapping) and isinstance(nearest, Mapping):
        values["cleaning"] = {**cleaning, "nearest": {"to": target, **nearest}}


def _name_vocabulary(values: dict[str, Any], target: str, corpus: Any, origin: str) -> None:
    """Let `tokenizer.corpus` that is the name of the last phase be the corpus of that."""
    tokenizer = _section(values, "tokenizer")
    if not isinstance(name := tokenizer.get("corpus"), str):
        return
    if name != target:
        raise UserError(
            f"{origin}: tokenizer.corpus {name} is neither a section nor the last phase, whose corpus it may "
            f"be: set it to {target} or to a section like corpus"
        )
    values["tokenizer"] = {**tokenizer, "corpus": corpus}


def phase_recipe(values: Mapping[str, Any], before: Mapping[str, tuple[Recipe, Path]], origin: str) -> Recipe:
    """The recipe of the phase after those in `before`, by name: of each its recipe and its run.

    It is `next_recipe`, where it is not the first. A teacher of `training.distillation` may be the name of a
    phase before, for the model of its run; so may `training.replay.run` and `evaluation.pool`, for the run.
    """
    values = _with_folders(values, {name: run for name, (_, run) in before.items()}, origin)
    *_, last = before.values() if before else [None]
    return next_recipe(values, *last, origin) if last else parse_recipe(values, origin)


def _with_folders(values: Mapping[str, Any], runs: Mapping[str, Path], origin: str) -> Mapping[str, Any]:
    """`values` with folders for the names of phases before; what has another shape is left to parsing."""

    def folder(setting: str, given: str, within: str = "") -> str:
        if given in runs:
            return str(runs[given] / within)
        if Path(given).name == given and not Path(given).exists():
            close = difflib.get_close_matches(given, runs, n=1)
            known = f"those are {', '.join(runs)}" if runs else "this one is the first"
            raise UserError(
                f"{origin}: {setting} {given} is no folder and no phase before; "
                + (f"did you mean {close[0]}?" if close else known)
            )
        return given

    training, evaluation = _section(values, "training"), _section(values, "evaluation")
    distillation, replay = _section(training, "distillation"), _section(training, "replay")
    teachers, run, pool = distillation.get("teachers"), replay.get("run"), evaluation.get("pool")
    if isinstance(teachers, list | tuple) and all(isinstance(each, str) for each in teachers):
        found = [folder("training.distillation.teachers", each, "model") for each in teachers]
        training = {**training, "distillation": {**distillation, "teachers": found}}
    if isinstance(run, str):
        training = {**training, "replay": {**replay, "run": folder("training.replay.run", run)}}
    if isinstance(pool, str):
        values = {**values, "evaluation": {**evaluation, "pool": folder("evaluation.pool", pool)}}
    return {**values, "training": training} if training else values


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The section `key` of `values`; an empty one where there is none, or something else."""
    given = values.get(key)
    return given if isinstance(given, Mapping) else {}


def next_recipe(values: Mapping[str, Any], before: Recipe, run: Path, origin: str) -> Recipe:
    """The recipe of a phase that starts from the model of `before`, whose run is in the folder `run`.

    It has that model's architecture. `training.replay` is of that run, and held-out loss on its text is
    looked at before and after, unless `evaluation` is null or windows are of another length or vocabulary.
    """
    given = values.get("training")
    if not (given is None or isinstance(given, Mapping)):
        return parse_recipe(values, origin)  # which says what is wrong with it
    training = dict(given or {})
    if training.get("start_from"):
        raise UserError(
            f"{origin}: training.start_from {training['start_from']} would pass over the phase before, whose "
            "model it starts from: remove it"
        )
    training["start_from"] = str(run / "model")
    given = {key: value for key, value in values.items() if key != "model" or value is not None}
    values = {"window": Recipe.model_fields["window"].default, "model": _dump(before.model), **given}
    if isinstance(training.get("replay"), Mapping):
        training["replay"] = {"run": str(run), **training["replay"]}
        if values["window"] != before.window:
            raise UserError(
                f"{origin}: training.replay needs windows of one length, but window is {values['window']} "
                f"and that of the phase before {before.window}: set it alike"
            )
    elif "evaluation" not in values and values["window"] == before.window:
        same = training.get("start_vocabulary", "same") == "same"
        values["evaluation"] = {"pool": str(run)} if same else None
    recipe = parse_recipe({**values, "training": training}, origin)
    now, then = _dump(recipe.model), _dump(before.model)
    if differing := [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]:
        shown = ", ".join(
            f"model.{key} is {now.get(key)!r} here and {then.get(key)!r} there" for key in differing
        )
        raise UserError(
            f"{origin}: the phase before trains another model: {shown}: set model to null here. A smaller "
            "one learns from it in a run of its own (training.distillation.teachers, or bkray compress)"
        )
    return recipe


def target_of(values: Mapping[str, Any], origin: str) -> Target:
    """Corpus and seed of the last phase's recipe."""
    return parse_section(Target, {key: values[key] for key in Target.model_fields if key in values}, origin)


def held_out_of(recipe: Recipe, target: Target, carved: bool, named: bool, origin: str) -> Recipe:
    """`recipe` with what the target holds out taken out of its training documents (`cleaning.leakage`).

    `carved` says whether the target's splits are drawn by its seed, `named` whether the recipe names its
    corpus already: then that stays as it is, so that several targets can share what is trained on it.
    """
    cleaning, name = recipe.cleaning, "target"
    leakage = cleaning.leakage or Leakage(held_out_of={name: target.corpus})
    corpora, seeds = dict(leakage.held_out_of), leakage.seeds
    if cleaning.leakage and not named:
        if name in corpora:
            raise UserError(
                f"{origin}: cleaning.leakage.held_out_of.{name} is not the corpus of the last phase: give it "
                "another name"
            )
        corpora[name] = target.corpus
    if carved and target.seed not in (drawn := seeds or (recipe.seed,)):
        seeds = (*drawn, target.seed)
    leakage = leakage.model_copy(update={"held_out_of": corpora, "seeds": seeds})
    return recipe.model_copy(update={"cleaning": cleaning.model_copy(update={"leakage": leakage})})


def _dump(model: Section) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _first(override: str) -> str:
    return override.replace("=", ".").split(".", 1)[0]
