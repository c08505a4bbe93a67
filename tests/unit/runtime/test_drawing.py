"""The sampler of a recipe's scores. No cluster needed."""

import numpy as np

from bkray.config import parse_recipe
from bkray.runtime.drawing import build_sampler


def test_windows_that_the_model_has_no_doubt_about_are_drawn_last():
    """Their entropy is 0, or by rounding a little less."""
    sections = {
        "window": 32,
        "sampling": {"weight": "entropy"},
        "training": {"batch_tokens": 320, "tokens": 3200},
    }
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, **sections})
    weight = np.repeat(np.array([0.0, -1e-8, 2.0], np.float32), (10, 10, 20))
    sampler = build_sampler(recipe, 40, {"weight": weight})
    first_pass = np.concatenate([sampler.ids(step) for step in range(2)])
    assert sorted(first_pass.tolist()) == list(range(20, 40))
