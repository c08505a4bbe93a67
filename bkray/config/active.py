"""Active learning: a base recipe that is trained in rounds, on windows that the model itself selects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from bkray.config.errors import UserError
from bkray.config.loading import parse_recipe
from bkray.config.preparation import Selection
from bkray.config.recipe import Recipe
from bkray.config.section import Count, Share
from bkray.config.sweep import OnRecipe, load_on_recipe


class ActiveLearning(OnRecipe):
    selection: Selection
    """How the model of a round selects, and the share of the windows that it scores that are added."""
    start: Share = 0.1
    """Share of the training windows to begin with, drawn at random."""
    pool: Share = 0.4
    """Share of the training windows that are scored in a round, drawn at random from those not taken."""
    rounds: Count = 4
    """How often windows are scored and added; the recipe's steps are spent between these."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """Of start, pools, initialisation and data order; the data and its split are the base recipe's."""

    @model_validator(mode="after")
    def _consistent(self) -> ActiveLearning:
        faults = []
        if self.selection.kind == "random":
            faults.append("selection.kind random is what the loop is held against: name another kind")
        left = 1.0 - self.start - (self.rounds - 1) * self.pool * self.selection.keep
        if left < self.pool - 1e-9:
            faults.append(
                f"start {self.start:g} and rounds {self.rounds}, each adding selection.keep "
                f"{self.selection.keep:g} of pool {self.pool:g}, leave {max(0.0, left):.3g} of the windows "
                "to the last round, less than a pool: lower one of the four"
            )
        if len(set(self.seeds)) < len(self.seeds):
            faults.append(f"seeds {list(self.seeds)} names a value twice")
        if faults:
            raise ValueError("\n".join(faults))
        return self


def load_active(path: Path, overrides: tuple[str, ...] = ()) -> tuple[ActiveLearning, Recipe]:
    """The file at `path` and its base recipe; `overrides` change keys of either."""
    active, values = load_on_recipe(ActiveLearning, path, overrides)
    training = {**(values.get("training") or {}), "trackers": []}
    recipe = parse_recipe({**values, "name": active.name, "training": training}, f"{path}: the base recipe")
    asked = ("difficulty", "selection", "proxy", "curriculum", "sampling")
    if given := [key for key in asked if getattr(recipe, key) is not None]:
        raise UserError(
            f"{path}: the base recipe's {', '.join(given)} would select or order windows beside the loop: "
            "set it to null in overrides (training.token_selection, too, asks for a proxy)"
        )
    if recipe.pool:
        raise UserError(
            f"{path}: the base recipe's {recipe.pool[0]} names another pool than the loop's: set it to "
            "null in overrides"
        )
    if recipe.training.distillation:
        raise UserError(
            f"{path}: training.distillation would have the teachers read the whole pool before the first "
            "round: set it to null in overrides"
        )
    if recipe.steps <= active.rounds:
        raise UserError(
            f"{path}: rounds {active.rounds} need more than the {recipe.steps} steps of training.tokens "
            f"{recipe.training.tokens}: raise training.tokens or lower rounds"
        )
    return active, recipe
