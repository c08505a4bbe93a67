"""Interleaved timing: every arm takes real steps on the same batches, turn by turn."""

import numpy as np
import torch

from bkray.config import Recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import WindowData, interleaved_step_seconds


def test_arms_take_turns_on_the_same_batches():
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": 16,
            "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 2},
            "training": {"batch_tokens": 64, "workers": 1},
        }
    )
    seen = []
    arms = {}
    for name in ("a", "b"):
        model = build_model(recipe.model, 50)
        model.embedding.register_forward_hook(
            lambda _, given, __, name=name: seen.append((name, given[0].tolist()))
        )
        arms[name] = (model, recipe)
    before = {name: model.embedding.weight.clone() for name, (model, _) in arms.items()}
    tokens = np.random.default_rng(0).integers(0, 50, (40, 17))
    data = dict.fromkeys(arms, WindowData(tokens, tokens[:0]))
    times = interleaved_step_seconds(arms, data, CurriculumSampler(np.zeros(40), 4, 9), 5)
    assert [len(values) for values in times.values()] == [5, 5]
    assert min(min(values) for values in times.values()) > 0
    steps = [(name, batch) for name, batch in seen if np.any(batch)]  # zeros are there to count FLOPs
    assert [name for name, _ in steps] == ["a", "b"] * (len(steps) // 2)
    assert [batch for name, batch in steps if name == "a"] == [batch for name, batch in steps if name == "b"]
    for name, (model, _) in arms.items():
        assert not torch.equal(model.embedding.weight, before[name])
