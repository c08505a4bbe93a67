"""What a step costs in FLOPs: counted by torch on one window, never assumed.

Matrix products, attention and BK-Core's scan are counted (a multiplication and an addition are two);
element-wise work is not. A backward pass costs twice its forward pass.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bkray.training.muon import NEWTON_SCHULZ_STEPS

_ADAMW_FLOPS = 14  # a parameter: two moments, bias correction, root, division, decay, update


@torch.no_grad()
def forward_flops(model: nn.Module, window: int) -> float:
    """FLOPs of one forward pass over one window of `window` tokens."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, window, dtype=torch.int64, device=device))
    model.train(training)
    return float(counter.get_total_flops())


def optimizer_flops(optimizer: torch.optim.Optimizer) -> float:
    """FLOPs of one optimizer step on one rank."""
    total = 0.0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            total += _muon_flops(parameter) if "momentum" in group else _ADAMW_FLOPS * parameter.numel()
    return total


def _muon_flops(parameter: nn.Parameter) -> float:
    short, long = sorted(parameter.shape)
    return NEWTON_SCHULZ_STEPS * (4.0 * short * short * long + 2.0 * short**3)
