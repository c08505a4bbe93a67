"""One rank's loss is infinite, its gradient is not: all leave the step out, that rank saves its batch."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from bkray.config import parse_recipe
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


class Table(nn.Module):
    """Where a window begins with the last token, the target of every site is impossible."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, tokens_BN):
        logits_BNV = self.table(tokens_BN)
        impossible_B = torch.where(tokens_BN[:, 0] == VOCAB - 1, -math.inf, 0.0)
        return torch.cat([logits_BNV[..., :1] + impossible_B[:, None, None], logits_BNV[..., 1:]], -1)


def work(rank, world_size, folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    windows = np.random.default_rng(0).integers(1, VOCAB - 1, (48, WINDOW + 1)).astype(np.int32)
    windows[BAD] = 0
    windows[BAD, 0] = VOCAB - 1
    torch.manual_seed(0)
    model = Table()
    sampler = CurriculumSampler(np.zeros(48), 4, RECIPE.steps, start=1.0)
    saver = Checkpointer(folder / "checkpoints", "key")
    training = RECIPE.training.model_copy(update={"parallel": kind})
    settings = RECIPE.model_copy(update={"training": training})
    result = train(model, WindowData(windows, windows[:0]), sampler, settings, checkpointer=saver)
    steps = [event["step"] for event in result.divergences]
    torch.save({"weight": model.table.weight.detach(), "steps": steps}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "zero1", "fsdp2"])
def test_all_ranks_refuse_the_step_that_one_cannot_take(spawn, tmp_path, kind):
    spawn(work, (2, tmp_path, kind), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0]["weight"], ranks[1]["weight"])
    assert ranks[0]["weight"].isfinite().all()
    sampler = CurriculumSampler(np.zeros(48), 4, RECIPE.steps, start=1.0)
    step = next(step for step in range(RECIPE.steps) if BAD in sampler.ids(step))
    assert ranks[0]["steps"] == ranks[1]["steps"] == [step]
    (saved,) = (tmp_path / "checkpoints").glob("diverged-*")
    batch = torch.load(saved, weights_only=True)
    assert saved.name == f"diverged-step-{step}-rank-{batch['rank']}.pt"
    assert np.array_equal(batch["ids"], sampler.ids(step, batch["rank"], 2))
    assert batch["window_losses"].isinf().tolist() == [window == BAD for window in batch["ids"].tolist()]
