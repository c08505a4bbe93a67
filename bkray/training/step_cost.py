"""What training on one window costs in FLOPs: of what the step really computed, counted once a length."""

from __future__ import annotations

from torch import nn

from bkray.model import LanguageModel
from bkray.training.flops import forward_cost, recomputed_flops


class StepCost:
    """Forward pass, twice that for the backward pass, and what activation checkpointing computes again."""

    def __init__(self, model: nn.Module, window: int) -> None:
        self.model, self.window = model, window
        self._by_length: dict[int, _Pass] = {}

    def flops(self, length: int, depth: float | None) -> float:
        """FLOPs of one window in pieces of `length` targets, at a mean depth in layers (None: all)."""
        if length not in self._by_length:
            self._by_length[length] = _Pass(self.model, length)
        return self._by_length[length].flops(depth) * (self.window / length)


class _Pass:
    """The cost of one piece."""

    def __init__(self, model: nn.Module, length: int) -> None:
        self.forward = forward_cost(model, length, training_mode=True)
        self.recomputed = 0.0
        if isinstance(model, LanguageModel) and model.checkpointing:
            self.recomputed = recomputed_flops(model, length) / self.forward.full

    def flops(self, depth: float | None) -> float:
        return (3 + self.recomputed) * self.forward.at(depth)
