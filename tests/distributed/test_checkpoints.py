"""All ranks go on from one checkpoint: that of a writer whom rank 0 alone waits for, or none of them does."""

import shutil
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Checkpointer, WindowData, train

pytestmark = pytest.mark.distributed

VOCAB, WINDOW = 12, 8


def trained(kind, folder, until=None):
    """The weights after 12 steps, or `until`, with checkpoints of every third in `folder`."""
    training = {
        "tokens": 12 * 4 * WINDOW,
        "batch_tokens": 4 * WINDOW,
        "parallel": kind,
        "checkpoint_every": 3,
    }
    model = {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 2}
    corpus = {"kind": "docstrings"}
    settings = parse_recipe(
        {"name": "t", "corpus": corpus, "window": WINDOW, "model": model, "training": training}
    )
    windows = np.random.default_rng(0).integers(0, VOCAB, (40, WINDOW + 1)).astype(np.int32)
    torch.manual_seed(0)
    model = build_model(settings.model, VOCAB)
    sampler = CurriculumSampler(np.zeros(40), 4, settings.steps, start=1.0)
    data, saver = WindowData(windows, windows[:0]), Checkpointer(folder, "key")
    train(model, data, sampler, settings, checkpointer=saver, until=until)
    return model.state_dict()


def work(rank, folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    with pytest.raises(UserError) as error:
        trained(kind, folder / f"of rank {rank}")
    if rank == 0:
        time.sleep(0.5)  # meanwhile rank 1 finds step 3
        shutil.move(folder / "written" / "step-00000006", folder / "seen")
    weights = trained(kind, folder / "seen")
    torch.save({"weights": weights, "said": str(error.value)}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_all_ranks_go_on_from_one_checkpoint_or_none_does(spawn, tmp_path, kind):
    trained(kind, tmp_path / "written", until=6)
    (tmp_path / "seen").mkdir()
    shutil.copytree(tmp_path / "written", tmp_path / "of rank 0")
    shutil.move(tmp_path / "written" / "step-00000003", tmp_path / "seen")
    spawn(work, (tmp_path, kind), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = trained(kind, tmp_path / "alone")
    for name, weight in expected.items():
        torch.testing.assert_close(ranks[0]["weights"][name], weight, atol=1e-5, rtol=0)
        assert torch.equal(ranks[1]["weights"][name], ranks[0]["weights"][name]), name
    for rank in range(2):
        said = rf"different checkpoints in {tmp_path / f'of rank {rank}'} (step 6, none): give --out a folder"
        assert said in ranks[rank]["said"]
