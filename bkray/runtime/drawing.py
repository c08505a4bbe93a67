"""From a recipe and the scores of the training windows to the sampler that draws from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bkray.config import Recipe
from bkray.curriculum import CurriculumSampler, WeightedSampler

_LEAST_WEIGHT = 1e-6  # of a window that the model has no doubt about: 0 nats, or a rounding below


def order_columns(recipe: Recipe) -> list[str]:
    """The columns of the training set that `build_sampler` asks for."""
    asked = {"difficulty": recipe.difficulty, "weight": recipe.sampling}
    return [name for name, section in asked.items() if section]


def build_sampler(recipe: Recipe, windows: int, scores: Mapping[str, np.ndarray]) -> CurriculumSampler:
    """The sampler of the recipe's curriculum and weights, or plain shuffling where there are none.

    `scores` holds the `order_columns`, (windows,) each.
    """
    options: dict[str, Any] = {"start": 1.0, "seed": recipe.seed}
    if recipe.curriculum:
        options |= {"pacing": recipe.curriculum.pacing, "start": recipe.curriculum.start}
    difficulty = scores.get("difficulty", np.zeros(windows))
    if not recipe.sampling:
        return CurriculumSampler(difficulty, recipe.batch_windows, recipe.steps, **options)
    options |= {
        "pass_share": recipe.sampling.share,
        "strengths": (recipe.sampling.start, recipe.sampling.end),
    }
    weight = np.maximum(scores["weight"], _LEAST_WEIGHT)
    return WeightedSampler(weight, difficulty, recipe.batch_windows, recipe.steps, **options)
