"""One rank's loss is infinite, its gradient is not: all leave the step out, that rank saves its batch.

Where the rate is too high all ranks fall back to one checkpoint.
"""

import math
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from bkray.config import parse_recipe
from bkray.config.divergence import FallBack
from bkray.curriculum import CurriculumSampler
from bkray.training import Checkpointer, WindowData, train

pytestmark = pytest.mark.distributed

VOCAB, WINDOW, BAD = 12, 8, 20
RECIPE = parse_recipe(
    {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "window": WINDOW,
        "training": {
            "tokens": 12 * 4 * WINDOW,
            "batch_tokens": 4 * WINDOW,
            "optimizer": "adamw",
            "on_divergence": "skip",
        },
    }
)
TOO_HIGH = {"lr": 1e20, "on_divergence": FallBack(kind="fall_back", lr_factor=3e-22)}


class Table(nn.Module):
    """Where a window begins with the last token, the target of every site is impossible."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, tokens_BN):
        logits_BNV = self.table(tokens_BN)
        impossible_B = torch.where(tokens_BN[:, 0] == VOCAB - 1, -math.inf, 0.0)
        return torch.cat([logits_BNV[..., :1] + impossible_B[:, None, None], logits_BNV[..., 1:]], -1)


def work(rank, world_size, folder, changes):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=world_size
    )
    windows = np.random.default_rng(0).integers(1, VOCAB - 1, (48, WINDOW + 1)).astype(np.int32)
    if "lr" not in changes:
        windows[BAD] = 0
        windows[BAD, 0] = VOCAB - 1
    torch.manual_seed(0)
    model = Table()
    sampler = CurriculumSampler(np.zeros(48), 4, RECIPE.steps, start=1.0)
    saver = Checkpointer(folder / "checkpoints", "key")
    training = RECIPE.training.model_copy(update=changes)
    settings = RECIPE.model_copy(update={"training": training})
    result = train(model, WindowData(windows, windows[:0]), sampler, settings, checkpointer=saver)
    events = [(event["step"], event["done"]) for event in result.divergences]
    torch.save({"weight": model.table.weight.detach(), "events": events}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def trained(spawn, folder, changes):
    """What two ranks, which end with the same finite weights, did about their divergences."""
    spawn(work, (2, folder, changes), 2)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0]["weight"], ranks[1]["weight"])
    assert ranks[0]["weight"].isfinite().all()
    assert ranks[0]["events"] == ranks[1]["events"]
    return ranks[0]["events"]


@pytest.mark.parametrize("kind", ["ddp", "zero1", "fsdp2"])
def test_all_ranks_refuse_the_step_that_one_cannot_take(spawn, tmp_path, kind):
    events = trained(spawn, tmp_path, {"parallel": kind})
    sampler = CurriculumSampler(np.zeros(48), 4, RECIPE.steps, start=1.0)
    step = next(step for step in range(RECIPE.steps) if BAD in sampler.ids(step))
    assert events == [(step, "the step was left out")]
    (saved,) = (tmp_path / "checkpoints").glob("diverged-*")
    batch = torch.load(saved, weights_only=True)
    assert saved.name == f"diverged-step-{step}-rank-{batch['rank']}.pt"
    assert np.array_equal(batch["ids"], sampler.ids(step, batch["rank"], 2))
    assert batch["window_losses"].isinf().tolist() == [window == BAD for window in batch["ids"].tolist()]


@pytest.mark.parametrize("kind", ["ddp", "zero1", "fsdp2"])
def test_all_ranks_fall_back_together(spawn, tmp_path, kind):
    ((_, done),) = trained(spawn, tmp_path, {"parallel": kind, **TOO_HIGH})
    assert done == "back to step 0, from there the rate is 3e-22 of the schedule's"
