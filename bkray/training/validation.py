"""The loss of a model on held-out windows, shared out among the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bkray.config.training import Training
from bkray.model import LanguageModel
from bkray.training.hardware import autocast
from bkray.training.objective import token_losses
from bkray.training.parallel.world import World

_BATCH = 16


@dataclass(frozen=True)
class Validation:
    loss: float
    """Mean over all targets of all ranks' windows, nats a token."""
    passed: int
    """Windows that went through the model; more than there are where ranks wait for others."""
    depth: float | None
    """Mean depth in layers over all of these, where sites may halt."""


@torch.no_grad()
def validated(model: nn.Module, windows_WN1: np.ndarray, training: Training, world: World) -> Validation:
    """Put `model` into eval mode and through all windows; a collective call.

    It is not compiled: the batches have other shapes, and each would be compiled for itself.
    """
    device = next(model.parameters()).device
    mine = windows_WN1[world.rank :: world.size]
    model.eval()
    nats, depths = (torch.zeros(1, dtype=torch.float64) for _ in range(2))
    passes = range(0, -(-len(windows_WN1) // world.size), _BATCH)
    for begin in passes:
        own = mine[begin : begin + _BATCH]
        given = own if len(own) else windows_WN1[:1]  # every rank goes through as many passes as the others
        tokens = torch.as_tensor(given, dtype=torch.int64, device=device)
        with autocast(training, device):
            logits_BNV = model(tokens[:, :-1])
        losses_BN = token_losses(logits_BNV, tokens[:, 1:])[: len(own)]
        nats += losses_BN.sum(dtype=torch.float64).cpu()
        depth = model.measurements().get("depth") if isinstance(model, LanguageModel) else None
        depths += len(given) * (depth or 0.0)
    idle = sum(len(windows_WN1[rank :: world.size]) <= passes[-1] for rank in range(world.size))
    targets, passed = len(windows_WN1) * (windows_WN1.shape[1] - 1), len(windows_WN1) + idle
    mean = None if depth is None else float(world.total(depths)) / passed
    return Validation(float(world.total(nats)) / targets, passed, mean)
