"""Short runs of tiny models and what they end with, for tests in which several ranks train.

Windows are of one token each where the model has options, so that a rank has experts and layers without work;
validation windows do not divide evenly, so that at the end of a look a rank has none left.
"""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from bkray.config import parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Checkpointer, Ledger, WindowData, train
from bkray.training.parallel.world import World

VOCABULARY, WINDOW, BATCH, KILLED_AT = 63, 16, 12, 7  # the embedding has no equal shares
MODEL = {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 4}
NOISY = "noisy"
"""A recipe of this name trains a model with dropout."""
HERE = {"device": "cpu"}
"""Where this process trains."""


def recipe(model=None, steps=12, name="t", **training):
    given = {"tokens": steps * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 2, "log_every": 3}
    return parse_recipe(
        {
            "name": name,
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {**MODEL, **(model or {})},
            "training": {**given, "eval_every": 10, "checkpoint_every": 5, **training},
        }
    )


def parts(settings):
    """What `train` takes before its keywords."""
    rng = np.random.default_rng(0)
    data = WindowData(*(rng.integers(0, VOCABULARY, (n, WINDOW + 1)).astype(np.int32) for n in (100, 65)))
    if settings.model.experts or settings.model.halting:
        data.train[:] = data.train[:, :1]
    torch.manual_seed(0)
    model = build_model(settings.model, VOCABULARY).to(HERE["device"])
    if settings.name == NOISY:
        noisy = lambda module, _, embedded: functional.dropout(embedded, 0.2, module.training)  # noqa: E731
        model.embedding.register_forward_hook(noisy)
    return model, data, CurriculumSampler(rng.random(100), BATCH, settings.steps, seed=0), settings


class Log:
    def __init__(self):
        self.losses = []

    def log(self, step, *, loss, **values):
        self.losses.append(loss)

    def truncate_after(self, step):
        return None


def trained(settings, folder=None, dtype=torch.float32):
    """What comes out of a run, on every rank; with a folder it goes on from there and keeps checkpoints."""
    model, *others = parts(settings)
    model.to(dtype)
    ledger, log, world = Ledger(), Log(), World.current()
    saver = Checkpointer(folder, "key") if folder else None
    result = train(model, *others, reporter=log, ledger=ledger, checkpointer=saver)
    with torch.no_grad():
        weights = torch.cat([parameter.flatten() for parameter in model.parameters()])
        tokens = torch.arange(10, device=weights.device).view(1, -1)
        logits = model(tokens) if world.rank == 0 else None  # needs no other rank
    return {
        "model": model.state_dict(),
        "logits": logits,
        "ranks agree": all(torch.equal(weights, other) for other in world.gather(weights)),
        "losses": log.losses,
        "validation": result.validation_loss,
        "flops": {kind: row["flops"] for kind, row in ledger.table().items()},
    }


class Killed(Exception):
    pass


class Ending(CurriculumSampler):
    def ids(self, step, *part):
        if step == KILLED_AT:
            raise Killed
        return super().ids(step, *part)


def killed(settings, folder):
    """A run that every rank ends between two steps; its checkpoints stay in `folder`, and `left` of it."""
    model, data, sampler, _ = parts(settings)
    sampler.__class__ = Ending  # a skipper draws from a copy
    with pytest.raises(Killed):
        train(model, data, sampler, settings, checkpointer=Checkpointer(folder, "key"))
    if World.current().rank == 0:
        shutil.copytree(folder, left(folder))
    World.current().total(torch.zeros(1))  # all wait for the copy


def left(folder):
    return folder.with_suffix(".left")


def near(bound):
    """`bound`, or what is left of it under Muon, which iterates in bfloat16 on a GPU."""
    return bound if HERE["device"] == "cpu" else 1e-3


def distance(one, other):
    """The largest difference of two runs' weights, and of their validation losses."""
    assert one["model"].keys() == other["model"].keys()
    weights = (t.cpu() - other["model"][name].cpu() for name, t in one["model"].items())
    return max(*(t.abs().max().item() for t in weights), abs(one["validation"] - other["validation"]))


def same_bits(one, other):
    end = other["losses"][-len(one["losses"]) :]
    return distance(one, other) == 0 and np.array_equal(end, one["losses"], equal_nan=True)
