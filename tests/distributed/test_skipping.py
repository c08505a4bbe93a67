"""With skipping, too, the number of ranks changes neither the windows nor the weights."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config import parse_recipe
from bkray.curriculum import WeightedSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData
from bkray.training.loop import TrainingRun

pytestmark = pytest.mark.distributed

RECIPE = parse_recipe(
    {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "window": 16,
        "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1, "n_heads": 4},
        "training": {
            "tokens": 30 * 8 * 16,
            "batch_tokens": 8 * 16,
            "skip": {"share": 0.5, "floor": 0.1, "until": 0.8},
        },
    }
)


def work(rank, world_size, folder):
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=world_size
        )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30, (100, 17)).astype(np.int32)
    tokens[::2] %= 4  # every second window is easy
    torch.manual_seed(0)
    model = build_model(RECIPE.model, 30)
    sampler = WeightedSampler(1 + rng.random(100), np.zeros(100), 8, RECIPE.steps, start=1.0)
    ledger = Ledger()
    run = TrainingRun(model, WindowData(tokens, tokens[:0]), sampler, RECIPE, None, ledger, None)
    draw, batches = run.draw, []

    def noted_draw():
        batch = draw()
        batches.append(torch.from_numpy(batch.ids))
        return batch

    run.draw = noted_draw
    while run.step < RECIPE.steps:
        run.train_step()
    ids = torch.stack(batches)
    assert all(torch.equal(ids, others) for others in run.world.gather(ids))
    if rank == 0:
        predictor = {"flops": ledger.table()["predictor"]["flops"]}
        torch.save({"ids": ids, "model": model.state_dict(), **predictor}, f"{folder}/{world_size}.pt")
    if world_size > 1:
        dist.barrier()  # a rank that leaves early closes connections that others still read from
        dist.destroy_process_group()


def test_windows_and_weights_agree_at_world_1_and_2(spawn, tmp_path):
    results = []
    for world_size in (1, 2):
        spawn(work, (world_size, str(tmp_path)), world_size)
        results.append(torch.load(tmp_path / f"{world_size}.pt", weights_only=True))
    one, two = results
    assert torch.equal(one["ids"], two["ids"])
    kept = torch.bincount(one["ids"][:24].flatten() % 2)
    assert kept[1] > 1.3 * kept[0]  # the predictor has found out which are easy
    assert two["flops"] == 2 * one["flops"]  # every rank predicts
    for name, expected in one["model"].items():
        torch.testing.assert_close(two["model"][name], expected, atol=1e-5, rtol=1e-5)
