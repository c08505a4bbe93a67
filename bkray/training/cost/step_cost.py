"""What training on one window costs in FLOPs: of what the step really computed, counted once a length."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bkray.config.training import Training
from bkray.model import LanguageModel
from bkray.training.cost.flops import forward_cost, recomputed_flops


class StepCost:
    """Forward pass, twice that for the backward pass, and what activation checkpointing computes again.

    Frozen layers below the trained ones have no backward pass; the frozen head has half of one, which gives
    the gradient of its input. Where tokens are selected the head is computed for all of them, and once more,
    with its backward pass, for those that are kept.

    `frozen` is how many layers are, by default those of `training.freeze`.
    """

    def __init__(self, model: nn.Module, window: int, training: Training, frozen: int | None = None) -> None:
        self.window = window
        layers = (training.freeze or 0) if frozen is None else frozen
        lengths = training.length.lengths(window) if training.length else [window]
        self._by_length = {length: _Pass(model, length, training, layers) for length in lengths}
        if isinstance(model, LanguageModel):  # what the counted passes left, which frozen blocks never renew
            model.auxiliary_losses()
            model.measurements()

    def flops(
        self, length: int, depth: float | None, reused: float = 0.0, *, recomputed: bool = True
    ) -> float:
        """FLOPs of one window in pieces of `length` targets.

        `depth` is the mean depth in layers (None: all), `reused` the share of the pieces whose frozen layers
        were not computed; `recomputed` counts what activation checkpointing computes again as well.
        """
        return self._by_length[length].flops(depth, reused, recomputed) * (self.window / length)


class _Pass:
    """The cost of one piece."""

    def __init__(self, model: nn.Module, length: int, training: Training, frozen: int) -> None:
        self.forward = forward_cost(model, length, training_mode=True)
        self.recomputed = self.prefix = self.head = 0.0
        if isinstance(model, LanguageModel) and training.activation_checkpointing:
            self.recomputed = recomputed_flops(model, length) / self.forward.full
        if isinstance(model, LanguageModel):
            self.prefix, self.head = _parts(model, length, frozen)
        backward = 1 if frozen else 2
        self.head_passes: float = 1 + backward
        if training.token_selection:
            self.head_passes = 1 + training.token_selection.keep * (1 + backward)

    def flops(self, depth: float | None, reused: float, recomputed: bool) -> float:
        whole = (3 + (self.recomputed if recomputed else 0.0)) * self.forward.at(depth)
        return whole - (2 + reused) * self.prefix - (3 - self.head_passes) * self.head


@torch.no_grad()
def _parts(model: LanguageModel, length: int, layers: int) -> tuple[float, float]:
    """FLOPs of the first `layers` blocks, and of the head, on one piece."""
    tokens = torch.zeros(1, length, dtype=torch.int64, device=model.embedding.weight.device)
    with FlopCounterMode(display=False) as counter:
        stream_BNd = model.stream(tokens, layers)
    prefix = float(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        model.head(stream_BNd)
    return prefix, float(counter.get_total_flops())
