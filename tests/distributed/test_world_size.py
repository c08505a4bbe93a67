"""A compiled and checkpointed run gives the same weights on two ranks as a plain one on one."""

import functools
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config import parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import WindowData, train

pytestmark = pytest.mark.distributed

RECIPE = parse_recipe(
    {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "window": 16,
        "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 2, "n_heads": 4},
        "training": {"tokens": 20 * 8 * 16, "batch_tokens": 8 * 16, "eval_every": 10, "eval_windows": 7},
    }
)


HARDWARE = RECIPE.model_copy(
    update={
        "training": RECIPE.training.model_copy(update={"compile": True, "activation_checkpointing": True})
    }
)


def work(rank, world_size, folder, recipe=RECIPE):
    torch.set_num_threads(1)
    if recipe.training.compile:  # all of it but the C++ compiler, which takes long
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    if world_size > 1:
        dist.init_process_group(
            "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=world_size
        )
    rng = np.random.default_rng(0)
    data = WindowData(*(rng.integers(0, 30, (count, 17)).astype(np.int32) for count in (100, 9)))
    torch.manual_seed(0)
    model = build_model(recipe.model, 30)
    sampler = CurriculumSampler(rng.random(100), 8, recipe.steps, seed=0)
    train(model, data, sampler, recipe)
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/{world_size}.pt")
    if world_size > 1:
        dist.barrier()  # a rank that leaves early closes connections that others still read from
        dist.destroy_process_group()


def test_compiled_and_checkpointed_weights_agree_at_world_1_and_2(spawn, tmp_path):
    states = []
    for world_size, recipe in ((1, RECIPE), (2, HARDWARE)):
        spawn(work, (world_size, str(tmp_path), recipe), world_size)
        states.append(torch.load(tmp_path / f"{world_size}.pt", weights_only=True))
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, atol=1e-4, rtol=1e-4)
