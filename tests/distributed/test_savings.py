"""Pieces, kept tokens, soft targets, frozen layers and the rates of layers agree for any number of ranks."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config import parse_recipe
from bkray.curriculum import CurriculumSampler, ReplaySampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData, train

pytestmark = pytest.mark.distributed

ARMS = {
    "reducible": {"length": {"start": 4}, "token_selection": {"keep": 0.3}},
    "random": {"token_selection": {"kind": "random", "keep": 0.3}},
    **{
        f"distilled, {kind}": {
            "length": {"start": 4},
            "accumulate": 2,
            "distillation": {"teachers": ["unread"], "top_k": 3, "weight": 0.9},
            "parallel": kind,
        }
        for kind in ("ddp", "fsdp2")
    },
    "replayed": {"start_from": "unread", "replay": {"run": "unread", "share": 0.3}},
    "frozen": {"start_from": "unread", "freeze": 1, "activation_cache": {}},
    **{
        f"unfrozen, {kind}": {"start_from": "unread", "unfreeze": {"at": [0.4]}, "parallel": kind}
        for kind in ("ddp", "zero1")
    },
    **{
        f"layer_decay, {kind}": {"start_from": "unread", "layer_decay": 0.5, "parallel": kind}
        for kind in ("ddp", "zero1", "fsdp2")
    },
}


def recipe(training):
    settings = {"tokens": 20 * 8 * 16, "batch_tokens": 8 * 16, "eval_every": 50}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": 16,
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 2, "n_heads": 4},
            "training": {**settings, **training},
        }
    )


def work(rank, world_size, folder):
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=world_size
        )
    results = {}
    for name, training in ARMS.items():
        settings, rng = recipe(training), np.random.default_rng(0)
        tokens, reference = rng.integers(0, 30, (48, 17)).astype(np.int32), rng.random((48, 16)) * 8
        if name == "reducible":  # one rank's tokens are all kept before any of another's
            reference[:, :] = np.where(np.arange(48) % 2, 0.0, 9.0)[:, None] + 0.1 * reference
        soft = rng.integers(0, 30, (48, 16 * 3)), np.log(rng.dirichlet(np.ones(4), (48, 16))[..., :3])
        soft = soft[0], soft[1].reshape(48, -1)
        torch.manual_seed(0)
        model, ledger = build_model(settings.model, 30), Ledger()
        sampler = CurriculumSampler(np.zeros(48), 8, settings.steps, start=1.0, seed=0)
        if settings.training.replay:  # of the same windows, the last 16 are the pool
            target = CurriculumSampler(np.zeros(32), 8, settings.steps, start=1.0, seed=0)
            sampler = ReplaySampler(target, 32, 16, settings.training.replay.share)
        train(model, WindowData(tokens, tokens[:4], reference, soft), sampler, settings, ledger=ledger)
        results[name] = {"model": model.state_dict(), "flops": ledger.table()["training"]["flops"]}
    if rank == 0:
        torch.save(results, f"{folder}/{world_size}.pt")
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def test_weights_and_costs_agree_at_world_1_and_2(spawn, tmp_path):
    for world_size in (1, 2):
        spawn(work, (world_size, str(tmp_path)), world_size)
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2))
    for name in ARMS:
        for parameter, expected in one[name]["model"].items():
            torch.testing.assert_close(two[name]["model"][parameter], expected, atol=1e-4, rtol=1e-4)
    for name in ("reducible", "unfrozen, ddp", "unfrozen, zero1"):
        assert one[name]["flops"] == two[name]["flops"]
    # a window comes back to another rank as often as not, which has not kept it
    assert one["frozen"]["flops"] < two["frozen"]["flops"]
