"""A layer that no site of a rank's batch goes through keeps no other rank waiting."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config.model import Halting, Multiscale
from bkray.config.training import Training
from bkray.model import ResNetBK, ResNetBKConfig
from bkray.training.parallel.strategy import Parallel
from bkray.training.parallel.world import World
from bkray.training.validation import validated

pytestmark = pytest.mark.distributed

OPTIONS = {"halting": Halting(threshold=0.9), "multiscale": Multiscale(layers=(1,), factor=8)}


def build(option):
    """With halting, token 0 goes through all layers and token 1 halts after the first."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 4}
    model = ResNetBK(ResNetBKConfig(2, **sizes, **{option: OPTIONS[option]}))
    if option == "halting":
        with torch.no_grad():
            model.embedding.weight[1] = -model.embedding.weight[0]
            model.stack.weight.copy_(-model.embedding.weight[0] / model.embedding.weight[0].norm())
    return model


def trained(rank, option):
    """Two steps on tokens that are this rank's own: the state of the model, and the depths."""
    model = build(option)
    ids = np.tile(np.arange(2)[:, None], (3, 13)).astype(np.int32)  # rank 0 looks at zeros, rank 1 at ones
    looked_at = validated(model, ids, Training(), World.current()).depth
    parallel = Parallel(model, Training(), steps=2).wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    depths = []
    for _ in range(2):
        loss = parallel(torch.full((2, 12 - 8 * rank), rank)).square().mean()
        sum(model.auxiliary_losses().values(), loss).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        depths.append(model.measurements().get("depth"))
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model.state_dict(), "depths": depths, "looked_at": looked_at}


def work(rank, option, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=2
    )
    torch.save(trained(rank, option), f"{folder}/{rank}.pt")  # DDP must be gone before its process group
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("option", OPTIONS)
def test_ranks_agree_where_one_has_nothing_to_do(spawn, option, tmp_path):
    spawn(work, (option, str(tmp_path)), 2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    if option == "halting":
        assert [result["depths"][0] for result in results] == [2, 1]
        assert [result["looked_at"] for result in results] == [1.5, 1.5]
    for name, expected in results[0]["model"].items():
        assert torch.equal(results[1]["model"][name], expected), name
