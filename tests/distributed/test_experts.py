"""An expert that no token chooses, on one rank or on all, does not hang DDP; the ranks stay equal."""

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
        "window": 8,
        "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 2, "experts": {"count": 8}},
        "training": {"tokens": 4 * 2 * 8, "batch_tokens": 2 * 8, "workers": 2},
    }
)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=2
    )
    windows = np.repeat(np.arange(8, dtype=np.int32)[:, None], 9, axis=1)  # a window is one token: one choice
    torch.manual_seed(0)
    model = build_model(RECIPE.model, 30)
    sampler = CurriculumSampler(np.arange(8.0), 2, RECIPE.steps, seed=0)
    train(model, WindowData(windows, windows[:2]), sampler, RECIPE)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_experts_without_tokens_do_not_hang_two_ranks(spawn, tmp_path):
    spawn(work, (str(tmp_path),), 2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
