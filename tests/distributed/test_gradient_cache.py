"""All ranks hit or miss together, whatever each would have chosen; and hit as one rank alone does."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config import parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData
from bkray.training.loop import TrainingRun

pytestmark = pytest.mark.distributed

VOCAB, WINDOW, BATCH, STEPS = 30, 16, 8, 12
CACHES = {
    "stale": {"kind": "stale", "audit": 0.3},
    "control_variate": {"kind": "control_variate"},
    "every": {"kind": "every", "steps": 3},
    "divided": {"kind": "stale", "audit": 0.3},  # rank 0 alone would hit
    "half": {"kind": "stale"},  # rank 0's part is always the same, rank 1's is not
    "off": {"kind": "every", "steps": 3, "least_cosine": 1.0},
    "zero1": {"kind": "stale", "audit": 0.3},
    "never": {"kind": "stale", "threshold": 2.0},
    "plain": None,
}


class Repeating(CurriculumSampler):
    """The first two global batches in turn, for ever."""

    def ids(self, step, rank=0, world_size=1):
        return super().ids(step % 2, rank, world_size)


class HalfRepeating(CurriculumSampler):
    """The first half of the first global batch with the second half of another one."""

    def ids(self, step, rank=0, world_size=1):
        both = [
            super(HalfRepeating, self).ids(at)[half] for at, half in ((0, slice(4)), (step % 5, slice(4, 8)))
        ]
        return np.concatenate(both).reshape(world_size, -1)[rank]


def start(name):
    cache = CACHES[name] and {"first_audits": 2, "least_cosine": -1.0, **CACHES[name]}
    recipe = parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1, "n_heads": 4},
            "training": {
                "tokens": STEPS * BATCH * WINDOW,
                "batch_tokens": BATCH * WINDOW,
                "optimizer": "adamw",
                "parallel": "zero1" if name == "zero1" else "ddp",
                "gradient_cache": cache,
            },
        }
    )
    rng = np.random.default_rng(0)
    data = WindowData(*(rng.integers(0, VOCAB, (count, WINDOW + 1)).astype(np.int32) for count in (40, 4)))
    torch.manual_seed(0)
    sampler = (HalfRepeating if name == "half" else Repeating)(np.zeros(40), BATCH, STEPS, start=1.0)
    return TrainingRun(build_model(recipe.model, VOCAB), data, sampler, recipe, None, Ledger(), None)


def trained(rank):
    """Of every cache: the weights, which steps were computed, and the cost."""
    results = {}
    for name in CACHES:
        run, computed, tokens = start(name), [], 0
        if name == "divided" and rank:
            run.cache.threshold = 2.0
        for _ in range(STEPS):
            run.train_step()
            seen = run.ledger.table()["training"]["tokens"]
            computed.append(seen > tokens)
            tokens = seen
        table = run.ledger.table()
        results[name] = {
            "model": run.model.state_dict(),
            "computed": computed,
            "flops": sum(table[kind]["flops"] for kind in ("training", "gradient_cache") if kind in table),
            "off": run.cache.off.split(":")[0] if run.cache else "",
        }
    return results


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    torch.save(trained(rank), f"{folder}/{rank}.pt")  # DDP must be gone before its process group
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_choose_alike_and_as_one_does(spawn, tmp_path):
    alone = trained(0)
    spawn(work, (str(tmp_path),), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in alone.items():
        first, second = (rank[name] for rank in ranks)
        assert first["computed"] == second["computed"] == expected["computed"], name
        assert first["off"] == second["off"] == expected["off"], name
        assert first["flops"] == second["flops"], name
        for key, tensor in expected["model"].items():
            assert torch.equal(first["model"][key], second["model"][key]), (name, key)
            torch.testing.assert_close(first["model"][key], tensor, atol=1e-4, rtol=1e-4)
    for of_world in (alone, *ranks):
        never, plain = (of_world[name]["model"] for name in ("never", "plain"))
        assert all(torch.equal(never[key], plain[key]) for key in plain)
        assert all(of_world["never"]["computed"])
    assert sum(alone["every"]["computed"]) < STEPS
    assert 0 < sum(alone["divided"]["computed"]) < STEPS
    assert sum(alone["half"]["computed"][:5]) == 5
    assert alone["off"]["off"]
