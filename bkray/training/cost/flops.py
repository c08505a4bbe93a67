"""What a step costs in FLOPs: counted by torch on one window, never assumed.

Matrix products, attention and BK-Core's scan are counted (a multiplication and an addition are two);
element-wise work is not. A backward pass costs twice its forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bkray.model import LanguageModel
from bkray.model.halting import HaltingStack, halting_at
from bkray.training.optimization.muon import NEWTON_SCHULZ_STEPS
from bkray.training.optimization.optimizers import is_muon

_ADAMW_FLOPS = 14  # a parameter: two moments, bias correction, root, division, decay, update


@dataclass(frozen=True)
class ForwardCost:
    """FLOPs of one pass over one window, where sites may halt: counted at both ends, linear between."""

    full: float
    least: float
    """With all sites halted before the first layer that they may go without."""
    first: int
    layers: int

    def at(self, depth: float | None) -> float:
        """At a mean depth, in layers; None: at full depth."""
        if depth is None or self.first == self.layers:
            return self.full
        return self.least + (self.full - self.least) * (depth - self.first) / (self.layers - self.first)


def forward_cost(model: nn.Module, window: int, training_mode: bool = False) -> ForwardCost:
    """The cost of a pass at any mean depth; one figure where sites do not halt."""
    full = forward_flops(model, window, training_mode)
    if not (isinstance(model, LanguageModel) and isinstance(model.stack, HaltingStack)):
        return ForwardCost(full, full, 0, 0)
    with halting_at(model.stack, 1.0):
        least = _count(model, window, training_mode)
    return ForwardCost(full, least, model.stack.first, len(model.blocks))


def forward_flops(model: nn.Module, window: int, training_mode: bool = False) -> float:
    """FLOPs of one forward pass over one window of `window` tokens, where sites may halt at full depth.

    In training mode objectives that are computed only there count as well; a foreign module, which may change
    its buffers there, is never put into it.
    """
    if isinstance(model, LanguageModel) and isinstance(model.stack, HaltingStack):
        with halting_at(model.stack, 0.0):
            return _count(model, window, training_mode)
    return _count(model, window, training_mode and isinstance(model, LanguageModel))


@torch.no_grad()
def head_flops(model: nn.Module, window: int) -> float:
    """FLOPs of the output head over one window; `model` has `hidden` and `head`."""
    tokens = torch.zeros(1, window, dtype=torch.int64, device=next(model.parameters()).device)
    hidden = model.hidden(tokens)  # type: ignore[operator]
    with FlopCounterMode(display=False) as counter:
        model.head(hidden)  # type: ignore[operator]
    return float(counter.get_total_flops())


@torch.no_grad()
def _count(model: nn.Module, window: int, training_mode: bool) -> float:
    device = next(model.parameters()).device
    training = model.training
    model.train(training_mode)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, window, dtype=torch.int64, device=device))
    model.train(training)
    return float(counter.get_total_flops())


def recomputed_flops(model: LanguageModel, window: int) -> float:
    """FLOPs that activation checkpointing computes a second time for one window: less than a forward pass.

    Counted as what a forward and backward pass takes with it, less what it takes without; `model` does both.
    """
    tokens = torch.zeros(1, window, dtype=torch.int64, device=next(model.parameters()).device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    counts = []
    try:
        for checkpointing in (True, False):
            model.checkpointing = checkpointing
            model.train()
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(model(tokens).float().sum(), parameters, allow_unused=True)
            counts.append(float(counter.get_total_flops()))
    finally:
        model.checkpointing = True
        model.train(training)
    return counts[0] - counts[1]


def optimizer_flops(optimizer: torch.optim.Optimizer, adamw_times: int = 1, muon_times: int = 1) -> float:
    """FLOPs of one optimizer step, where so many ranks compute the same update; frozen ones take none."""
    total = 0.0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue
            if is_muon(group):
                total += muon_times * _muon_flops(parameter)
            else:
                total += adamw_times * _ADAMW_FLOPS * parameter.numel()
    return total


def _muon_flops(parameter: nn.Parameter) -> float:
    *stack, rows, columns = parameter.shape
    short, long = sorted((rows, columns))
    return math.prod(stack) * NEWTON_SCHULZ_STEPS * (4.0 * short * short * long + 2.0 * short**3)
