"""ddp, zero1 and fsdp2, gradient compression and accumulation: all of one world's runs share its processes."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bkray.config import parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData, train

pytestmark = pytest.mark.distributed

VOCABULARY, WINDOW, BATCH, STEPS = 60, 16, 8, 50
MODEL = {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 4}


def recipe(model=None, steps=12, **training):
    """Validation windows do not divide evenly, so that at the end of a look some ranks have none left."""
    given = {"tokens": steps * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 2, "log_every": 3}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {**MODEL, **(model or {})},
            "training": {**given, "eval_every": 10, "checkpoint_every": 5, **training},
        }
    )


def parts(settings):
    rng = np.random.default_rng(0)
    data = WindowData(*(rng.integers(0, VOCABULARY, (n, WINDOW + 1)).astype(np.int32) for n in (100, 65)))
    torch.manual_seed(0)
    model = build_model(settings.model, VOCABULARY)
    return model, data, CurriculumSampler(rng.random(100), BATCH, settings.steps, seed=0), settings


class Log:
    def __init__(self):
        self.lines = []

    def log(self, step, **values):
        self.lines.append({"step": step, **values})

    def truncate_after(self, step):
        return None


def trained(settings, **given):
    model, ledger, log = parts(settings)[0], Ledger(), Log()
    model, *others = parts(settings)
    result = train(model, *others, reporter=log, ledger=ledger, **given)
    losses = [line["loss"] for line in log.lines]
    return {
        "model": model.state_dict(),
        "losses": losses,
        "validation": result.validation_loss,
        "ledger": {kind: row["flops"] for kind, row in ledger.table().items()},
    }


RUNS = {
    f"{optimizer} {parallel}": recipe(steps=STEPS, optimizer=optimizer, parallel=parallel)
    for optimizer in ("muon", "adamw")
    for parallel in ("ddp", "zero1", "fsdp2")
}


def everything(rank, size, folder):
    for name, settings in RUNS.items():
        print(rank, name)
        result = trained(settings)
        if rank == 0:
            torch.save(result, folder / f"{name}.pt")


def work(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=size)
    everything(rank, size, folder)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    mp.spawn(work, (request.param, folder), nprocs=request.param)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def test_all(results):
    for opt in ("muon", "adamw"):
        alone = trained(RUNS[f"{opt} ddp"])
        base = results[f"{opt} ddp"]
        d = lambda a, b: max((a["model"][n] - b["model"][n]).abs().max().item() for n in a["model"])
        print(
            opt,
            "ddp vs alone",
            d(alone, base),
            "zero1",
            d(base, results[f"{opt} zero1"]),
            "fsdp2",
            d(base, results[f"{opt} fsdp2"]),
            base["validation"],
            results[f"{opt} fsdp2"]["validation"],
            base["ledger"],
            results[f"{opt} fsdp2"]["ledger"],
        )
