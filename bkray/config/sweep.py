"""A sweep: a base recipe, the space that is explored, and how long trials may live."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator

from bkray.config.errors import UserError
from bkray.config.loading import apply_overrides, parse_recipe, parse_section, read_recipe, read_yaml
from bkray.config.recipe import Recipe
from bkray.config.section import Section


class Choice(Section):
    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)


class Uniform(Section):
    kind: Literal["uniform", "loguniform"]
    low: float
    high: float


Domain = Annotated[Choice | Uniform, Field(discriminator="kind")]


class OnRecipe(Section):
    """What is done with variants of one base recipe."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    recipe: str
    """Path of the base recipe, relative to this file."""
    overrides: tuple[str, ...] = ()
    """key=value changes of the base recipe that all variants share."""


class Sweep(OnRecipe):
    space: dict[str, Domain]
    """Dotted recipe keys and what each may be."""
    trials: Annotated[int, Field(ge=1)] = 6
    """Sampled trials; the baseline comes on top."""
    seed: int = 0
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and values that turn every explored technique off; this trial is never stopped early."""
    grace_steps: Annotated[int, Field(ge=1)] = 50
    """Steps that every trial is given before ASHA may stop it."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """ASHA keeps one in so many at each rung."""

    @field_validator("space")
    @classmethod
    def _not_empty(cls, space: dict[str, Any]) -> dict[str, Any]:
        if not space:
            raise ValueError("the space names no key to explore")
        return space


def load_sweep(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Sweep, dict[str, Any]]:
    """The sweep at `path` and the values of its base recipe; `overrides` change keys of either."""
    return load_on_recipe(Sweep, path, overrides)


S = TypeVar("S", bound="OnRecipe")


def load_on_recipe(kind: type[S], path: Path, overrides: tuple[str, ...]) -> tuple[S, dict[str, Any]]:
    """The section at `path` that works on a base recipe, and that recipe's values.

    An override belongs to the section if that has its first key or, where neither has it, the nearest to it;
    else to the base recipe.
    """
    own = [given for given in overrides if _is_own(kind, re.split(r"[.=]", given, maxsplit=1)[0])]
    shared = [given for given in overrides if given not in own]
    section = parse_section(kind, apply_overrides(read_yaml(path), own), str(path))
    section = section.model_copy(update={"overrides": (*section.overrides, *shared)})
    values = apply_overrides(read_recipe(path.parent / section.recipe), section.overrides)
    parse_recipe(values, f"{path}: the base recipe")
    return section, values


def _is_own(kind: type[S], key: str) -> bool:
    known = [*kind.model_fields, *Recipe.model_fields]
    nearest = [key] if key in known else difflib.get_close_matches(key, known, n=1)
    return bool(set(nearest) & kind.model_fields.keys())


def trial_recipe(sweep: Sweep, values: dict[str, Any], point: dict[str, Any], name: str) -> Recipe:
    """The recipe of one trial: the base values with `point` (dotted keys) set, one worker, named `name`."""
    return changed_recipe(values, point, name, f"sweep {sweep.name}, {point}")


def changed_recipe(values: dict[str, Any], changes: dict[str, Any], name: str, origin: str) -> Recipe:
    """The base recipe `values` with `changes` (dotted keys), one worker, named `name`.

    Trials use no trackers, so a winner names none either.
    """
    changed = apply_overrides(values, ())
    for key, value in changes.items():
        _set(changed, key.split("."), value, origin)
    training = {**(changed.get("training") or {}), "workers": 1, "trackers": []}
    recipe = parse_recipe({**changed, "name": name, "training": training}, origin)
    if recipe.evaluation:
        raise UserError(f"{origin}: evaluation.pool has no effect on trials: set evaluation to null")
    return recipe


def _set(values: dict[str, Any], keys: list[str], value: Any, origin: str) -> None:
    *parents, last = keys
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            raise UserError(f"{origin}: key {'.'.join(keys)}: the base recipe has no section {parent}")
        values = inner
    values[last] = value
