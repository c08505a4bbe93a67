"""Adaptive computation: sites halt before the last layer, and a halted site is not computed again.

    x ─► lambda = sigmoid(w_l . RMSNorm(x) / sqrt(d) + b_l) ─► s *= 1 - lambda
         s > threshold: x += s (block(x) - x)
         else: the site halts with this x

lambda is the probability that a site which came so far halts before layer l, and s that it has not halted yet
(PonderNet, arXiv 2107.05407); as in ACT (arXiv 1603.08983) nothing is drawn: a layer's update counts with
weight s, which is how the units learn, and training and evaluation compute the same.

A deeper layer sees the live sites alone, as a shorter sequence. Whether a site is live depends on sites up to
itself, so a site's place among the live ones does too: the model stays causal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from bkray.config.model import Halting
from bkray.model.language_model import Block, Stack
from bkray.model.layers import rms_norm

Tensor = torch.Tensor
State = tuple[Tensor, ...]

INITIAL_LOGIT = -3.0
"""lambda starts at 0.05, or where that would halt every site, at less: a layer that no site reaches has no
gradient, and would never get one."""
MULTIPLE = 16
"""Shorter sequences are padded to such lengths: over single rows, matrix products and vectorised functions
take other paths, so that the number of later live sites would show in the last bits of earlier ones.
"""


class HaltingStack(Stack):
    """Leaves out the layers after the one where a site halts; never those before `first_layer`.

    A pass leaves `measured["depth"]`, the mean number of layers a site went through, and, in training,
    `auxiliary["ponder_loss"]`. `weight` is shaped (layers, 1, d): no matrix to an optimizer of matrices.
    """

    def __init__(self, halting: Halting, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.first, self.threshold = halting.first_layer, halting.threshold
        self.ponder, self.warmup = halting.ponder, halting.warmup
        layers = n_layers - self.first
        self.weight = nn.Parameter(torch.zeros(layers, 1, d_model))
        # before the last layer the survival is half way between the threshold and 1, or more
        largest = 1 - ((1 + self.threshold) / 2) ** (1 / layers)
        logit = min(INITIAL_LOGIT, math.log(largest / (1 - largest)))
        self.bias = nn.Parameter(torch.full((layers,), logit))

    def forward(self, blocks: Sequence[Block], x: Tensor) -> Tensor:
        x = super().forward(blocks[: self.first], x)
        sites = x.shape[0] * x.shape[1]
        survival, expected, depth = x.new_ones(x.shape[:2]), x.new_zeros(()), x.new_tensor(float(self.first))
        outer: list[tuple[Tensor, _Places, Tensor]] = []
        for layer, block in enumerate(blocks[self.first :]):
            survival = survival * self._goes_on(x, layer)
            live = survival > self.threshold
            places = _Places(live)
            outer.append((live, places, x))
            x, survival = places.gather(x), places.gather(survival.unsqueeze(-1)).squeeze(-1)
            x = torch.lerp(x, block(x), survival.unsqueeze(-1))
            expected = expected + survival.sum() / sites
            depth = depth + live.sum() / sites
        for live, places, halted in reversed(outer):
            x = torch.where(live.unsqueeze(-1), places.scatter(x), halted)
        self.measured = {"depth": depth}
        if self.training:
            self.auxiliary = {"ponder_loss": self.ponder * expected}
        return x

    def schedule(self, progress: float) -> float:
        """The factor of the ponder cost when the share `progress` of the training is done: a linear rise."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0

    def initial_state(self, blocks: Sequence[Block], batch: int) -> tuple[State, ...]:
        """From `first_layer` on a layer also counts the sites it has seen, (B, 1)."""
        states = super().initial_state(blocks, batch)
        seen = torch.zeros(batch, 1, dtype=torch.long, device=self.bias.device)
        return states[: self.first] + tuple((seen, *state) for state in states[self.first :])

    def step(
        self, blocks: Sequence[Block], x: Tensor, memories: Iterable[State], position: int
    ) -> tuple[Tensor, tuple[State, ...]]:
        memories = list(memories)
        x, after = super().step(blocks[: self.first], x, memories[: self.first], position)
        states = [*after, *memories[self.first :]]
        out, rows, survival = x, torch.arange(len(x), device=x.device), x.new_ones(len(x))
        for layer, block in enumerate(blocks[self.first :]):
            survival = survival * self._goes_on(x, layer)
            live = survival > self.threshold
            rows, x, survival = rows[live], x[live], survival[live]
            if not len(rows):
                break
            seen, *memory = (tensor[rows] for tensor in memories[self.first + layer])
            # attention, which needs a number, is refused in these layers
            y, changed = block.step(x, tuple(memory), cast("int", seen))
            x = torch.lerp(x, y, survival.unsqueeze(-1))
            out = out.index_copy(0, rows, x)
            states[self.first + layer] = tuple(
                tensor.index_copy(0, rows, new)
                for tensor, new in zip(memories[self.first + layer], (seen + 1, *changed), strict=True)
            )
        return out, tuple(states)

    def _goes_on(self, x: Tensor, layer: int) -> Tensor:
        """1 - lambda (…) of the sites x (…, d) before this layer, counted from `first_layer`."""
        with torch.autocast(x.device.type, enabled=False):
            halts = (rms_norm(x) * self.weight[layer, 0]).sum(-1) * x.shape[-1] ** -0.5 + self.bias[layer]
            return torch.sigmoid(-halts)


@contextmanager
def halting_at(stack: HaltingStack, threshold: float) -> Iterator[None]:
    """Another threshold for a while: 0 takes every site through every layer, 1 none beyond `first_layer`."""
    usual, stack.threshold = stack.threshold, threshold
    try:
        yield
    finally:
        stack.threshold = usual


class _Places:
    """Where the live sites of each sequence lie in a shorter, padded one: live (B, N) -> (B, M) and back."""

    def __init__(self, live_BN: Tensor) -> None:
        batch, sites = live_BN.shape
        rank = live_BN.cumsum(1) - 1
        self.length = MULTIPLE * max(1, -(-int(live_BN.sum(1).max()) // MULTIPLE))
        self.sites, start = sites, torch.arange(batch, device=live_BN.device).unsqueeze(1)
        self.to = torch.where(live_BN, start * self.length + rank, -1).flatten()
        come_from = torch.arange(batch * sites, device=live_BN.device).view(batch, sites)
        padding = rank.new_full((batch, self.length + 1), -1)  # the last column takes what halts
        self.origin = padding.scatter(1, torch.where(live_BN, rank, self.length), come_from)[:, :-1].flatten()

    def gather(self, x_BNd: Tensor) -> Tensor:
        """The live sites (B, M, d), zero in the padding."""
        return _Rows.apply(x_BNd.flatten(0, 1), self.origin, self.to).unflatten(0, (-1, self.length))

    def scatter(self, x_BMd: Tensor) -> Tensor:
        """Back to (B, N, d), zero where a site has halted."""
        return _Rows.apply(x_BMd.flatten(0, 1), self.to, self.origin).unflatten(0, (-1, self.sites))


class _Rows(torch.autograd.Function):
    """x (R, d) to (S, d), its rows `index` (S,), zero where that is -1; `inverse` (R,) is the way back.

    Every row is taken at most once, so that the gradient is a selection of rows too, and no sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return _rows(x, index)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _rows(g, ctx.saved_tensors[1]), None, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    rows = x.index_select(0, index.clamp_min(0))
    return rows.masked_fill_((index < 0).unsqueeze(1), 0)
