"""An exponential moving average of the weights, for validation, evaluation and export (Polyak averaging).

    average ← β average + (1 − β) weights,    β = min(decay, (1 + n) / (10 + n)) after n updates

The lower β of the start, as in TensorFlow's ExponentialMovingAverage, forgets the first weights soon. The
weights that train know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bkray.config.training import Average

AVERAGING_FLOPS = 3
"""A parameter and update: difference, product, sum."""


def averaged(model: nn.Module, settings: Average) -> AveragedModel:
    """A copy of `model` that `update_parameters` moves; buffers are those of the weights last given."""
    return AveragedModel(model, multi_avg_fn=_moving(settings.decay))


def _moving(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def move(average: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
        count = int(updates)
        beta = min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(average, weights, 1.0 - beta)

    return move
