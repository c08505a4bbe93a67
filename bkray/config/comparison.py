"""A comparison: arms of one base recipe, each with its own learning rate, run at common budgets and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from bkray.config.errors import UserError
from bkray.config.loading import apply_overrides, read_recipe
from bkray.config.recipe import Recipe
from bkray.config.section import Count, Rate
from bkray.config.sweep import OnRecipe, changed_recipe, load_on_recipe


class Comparison(OnRecipe):
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], dict[str, Any] | str]
    """Name of every arm and what is its own: dotted recipe keys and values, or the path of a whole recipe."""
    reference: str
    """The arm that the others are held against."""
    learning_rates: tuple[Rate, ...] = Field(min_length=1)
    """Every arm tries each for `tuning_steps`, and goes on with the best on the validation split.

    A single one is taken untried.
    """
    tuning_steps: Count = 400
    steps: tuple[Count, ...] = Field(min_length=1)
    """Budgets of the reference, each with its own completed schedule."""
    equal_seconds: bool = True
    """Whether the arms also run for as many steps as take the reference's time."""
    timing_rounds: Annotated[int, Field(ge=3)] = 20
    """Interleaved steps of every arm, the first of its longest run; their medians say what equal time is."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    """Of initialisation and data order; the data and its split stay those of the base recipe's seed."""

    @model_validator(mode="after")
    def _consistent(self) -> Comparison:
        if self.reference not in self.arms:
            raise ValueError(f"reference {self.reference!r} is not among the arms: {', '.join(self.arms)}")
        if len(self.arms) < 2:
            raise ValueError("arms: at least two are needed to compare")
        for name in ("learning_rates", "steps", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} {list(getattr(self, name))} names a value twice")
        return self


def load_comparison(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Comparison, dict[str, Recipe]]:
    """The comparison at `path` and the recipe of every arm; `overrides` change keys of either."""
    comparison, values = load_on_recipe(Comparison, path, overrides)
    recipes = {}
    for name, arm in comparison.arms.items():
        if isinstance(arm, str):
            base, changes = apply_overrides(read_recipe(path.parent / arm), comparison.overrides), {}
        else:
            base, changes = values, arm
        recipes[name] = changed_recipe(base, changes, name, f"{path}, arm {name}")
    same = [(recipe.window, recipe.batch_windows, recipe.tokenizer) for recipe in recipes.values()]
    if any(each != same[0] for each in same):
        raise UserError(
            f"{path}: arms of other windows, batches or tokenizers cannot be compared at equal steps: "
            "set window, training.batch_tokens and tokenizer in overrides, for all"
        )
    return comparison, recipes
