"""Coarse stages: some layers run once for `factor` sites, and stay causal.

    x (B, N, d) ─► pooled blocks of F sites (B, N // F, d) ─► coarse layers ─► their update ─┐
        └─────────────────────────────────────────────────────────────────────────────────── + ─► x

The update of a block is added to its last site and the F - 1 sites that follow, none of which comes before a
site of the block: Hourglass's shift by F - 1 (arXiv 2110.13711). Sites of the last, unfinished block and the
first F - 1 sites get what is there, the previous block's update and nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from bkray.config.model import Multiscale
from bkray.model.language_model import Block, Stack

Tensor = torch.Tensor
State = tuple[Tensor, ...]


class MultiscaleStack(Stack):
    """Neighbouring coarse layers are one stage: they share a pooling. All other layers see every site.

    `pooling` (F, 1, d) a stage weighs the sites of a block, a channel its own; it starts as their mean.
    Decoding remembers for each stage, after the mixers of all layers, the block so far and the last update,
    both (B, d).
    """

    def __init__(self, multiscale: Multiscale, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.factor = multiscale.factor
        coarse = [layer in multiscale.layers for layer in range(n_layers)]
        bounds = [layer for layer in range(1, n_layers) if coarse[layer] != coarse[layer - 1]]
        self.parts = [(first, last, coarse[first]) for first, last in pairwise([0, *bounds, n_layers])]
        self.pooling = nn.ParameterList(
            torch.full((self.factor, 1, d_model), 1 / self.factor) for *_, coarse in self.parts if coarse
        )

    def forward(self, blocks: Sequence[Block], x: Tensor) -> Tensor:
        pooling = iter(self.pooling)
        for first, last, coarse in self.parts:
            if coarse:
                x = x + self._update(blocks[first:last], x, next(pooling))
            else:
                x = super().forward(blocks[first:last], x)
        return x

    def _update(self, blocks: Sequence[Block], x_BNd: Tensor, pooling: Tensor) -> Tensor:
        """What a stage adds to x, (B, N, d).

        Where there is no whole block a stand-in goes through the layers, whose parameters so get their
        gradients, zeros, that other ranks wait for.
        """
        factor, sites = self.factor, x_BNd.shape[1]
        whole = max(1, sites // factor)
        x_BNd = F.pad(x_BNd, (0, 0, 0, max(0, factor - sites)))
        blocked = x_BNd[:, : whole * factor].unflatten(1, (whole, factor))
        pooled = (blocked * pooling[:, 0]).sum(2)
        update = super().forward(blocks, pooled) - pooled
        return F.pad(update.repeat_interleave(factor, dim=1), (0, 0, factor - 1, 0))[:, :sites]

    def initial_state(self, blocks: Sequence[Block], batch: int) -> tuple[State, ...]:
        stages = tuple(2 * (pooling.new_zeros(batch, pooling.shape[-1]),) for pooling in self.pooling)
        return super().initial_state(blocks, batch) + stages

    def step(
        self, blocks: Sequence[Block], x: Tensor, memories: Iterable[State], position: int
    ) -> tuple[Tensor, tuple[State, ...]]:
        states = list(memories)
        stage = 0
        for first, last, coarse in self.parts:
            if not coarse:
                x, states[first:last] = super().step(blocks[first:last], x, states[first:last], position)
                continue
            where = len(blocks) + stage
            partial, update = states[where]
            place, pooling = position % self.factor, self.pooling[stage]
            partial = pooling[place] * x + (partial if place else 0)
            if place == self.factor - 1:
                coarse_position = position // self.factor
                y, states[first:last] = super().step(
                    blocks[first:last], partial, states[first:last], coarse_position
                )
                update = y - partial
            states[where] = (partial, update)
            x, stage = x + update, stage + 1
        return x, tuple(states)
