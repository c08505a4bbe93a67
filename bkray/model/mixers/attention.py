"""Softmax attention.

Rotary positions (arXiv 2104.09864); queries and keys RMS-normalised a head (arXiv 2010.04245).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from bkray.model.convolution import CausalConvolution
from bkray.model.layers import rms_norm

Tensor = torch.Tensor
State = tuple[Tensor, ...]

ROTARY_BASE = 10_000.0


class Attention(nn.Module):
    """x (B, N, d) to (B, N, d), causal; starts as zero.

    A site sees all sites before it, O(N^2), or the last `window` of them, itself included, O(N window). The
    state: keys (turned) and values (B, H, n, d/H) of the n sites that the next one can see.
    """

    def __init__(self, d_model: int, n_heads: int, window: int | None = None) -> None:
        super().__init__()
        self.n_heads, self.window = n_heads, window
        self.query, self.key, self.value, self.output = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        nn.init.zeros_(self.output.weight)

    def forward(self, x_BNd: Tensor) -> Tensor:
        q, k, v = self._project(x_BNd, 0)
        if self.window is None or self.window >= x_BNd.shape[1]:
            return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self._merge(_windowed(q, k, v, self.window))

    def initial_state(self, batch: int) -> State:
        weight = self.output.weight
        empty = weight.new_zeros(batch, self.n_heads, 0, weight.shape[0] // self.n_heads)
        return empty, empty

    def step(self, x_Bd: Tensor, state: State, position: int) -> tuple[Tensor, State]:
        q, k, v = self._project(x_Bd.unsqueeze(1), position)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(state, (k, v), strict=True))
        if self.window:
            keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
        return self._merge(F.scaled_dot_product_attention(q, keys, values)).squeeze(1), (keys, values)

    def _project(self, x_BNd: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        heads = (
            matrix(x_BNd).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        q, k, v = heads
        rotation = _rotation(first, first + x_BNd.shape[1], q.shape[-1], q)
        return _rotate(rms_norm(q), rotation), _rotate(rms_norm(k), rotation), v

    def _merge(self, mixed_BHND: Tensor) -> Tensor:
        return self.output(mixed_BHND.transpose(1, 2).flatten(2))


class ConvolvedAttention(Attention):
    """Attention after a causal convolution of 4 taps, as the resolvents have it (Primer, arXiv 2109.08668).

    Its state: the last inputs of the convolution (B, 3, d), then Attention's.
    """

    def __init__(self, d_model: int, n_heads: int, window: int | None = None) -> None:
        super().__init__(d_model, n_heads, window)
        self.convolution = CausalConvolution(d_model)

    def forward(self, x_BNd: Tensor) -> Tensor:
        return super().forward(self.convolution(x_BNd))

    def initial_state(self, batch: int) -> State:
        return self.convolution.initial_state(batch), *super().initial_state(batch)

    def step(self, x_Bd: Tensor, state: State, position: int) -> tuple[Tensor, State]:
        z_Bd, window = self.convolution.step(x_Bd, state[0])
        mixed, seen = super().step(z_Bd, state[1:], position)
        return mixed, (window, *seen)


def _rotation(first: int, last: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (sites, width/2) of the rotary angles of the sites first … last - 1."""
    rate = ROTARY_BASE ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angle = torch.arange(first, last, device=like.device, dtype=torch.float32).outer(rate)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x_BHND: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    left, right = x_BHND.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention (B, H, N, D) to `window` sites: blocks of so many, each with the one before."""
    length = q.shape[2]
    blocks = -(-length // window)
    q, k, v = (
        F.pad(t, (0, 0, 0, blocks * window - length)).unflatten(2, (blocks, window)) for t in (q, k, v)
    )
    k, v = (torch.cat([F.pad(t, (0, 0, 0, 0, 1, 0))[:, :, :-1], t], dim=3) for t in (k, v))
    site = torch.arange(window, device=q.device)
    seen = torch.arange(-window, window, device=q.device)
    band = (seen <= site[:, None]) & (seen > site[:, None] - window)
    first = band & (seen >= 0)  # before the first block there is nothing
    mask = torch.cat([first[None], band.expand(blocks - 1, -1, -1)])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(2, 3)[:, :, :length]


# torch counts the attention of GPUs alone (2.9 to 2.13).
if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:

    @register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
    def _forward_flops(q: Any, k: Any, v: Any, *others: Any, **keywords: Any) -> int:
        return sdpa_flop_count(q, k, v)

    @register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
    def _backward_flops(g: Any, q: Any, k: Any, v: Any, *others: Any, **keywords: Any) -> int:
        return sdpa_backward_flop_count(g, q, k, v)
