"""The Transformer that ResNet-BK is compared with: all the same but for attention as the mixer.

tokens (B, N) ─► embedding ─► RMSNorm ─► n_layers x [+ Attention, + FeedForward] ─► RMSNorm ─► head

Attention: rotary positions (arXiv 2104.09864), queries and keys RMS-normalised a head (arXiv 2010.04245)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.model.arguments import check_tokens
from bkray.model.layers import FeedForward, rms_norm, token_embedding

Tensor = torch.Tensor

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes: V token ids, width d, layers, and heads of an even width d / n_heads."""

    vocab_size: int
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 4

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % (2 * self.n_heads):
            raise UserError(f"d_model {self.d_model} must be a multiple of 2 x n_heads {self.n_heads}")


class Cache(NamedTuple):
    """Keys (turned) and values of the sites seen, (B, H, n, d/H)."""

    keys: Tensor
    values: Tensor


class State(NamedTuple):
    """What decoding carries from token to token: sites seen, and every layer's cache."""

    position: int
    caches: tuple[Cache, ...]


def _rotation(first: int, last: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (sites, width/2) of the rotary angles of the sites first … last - 1."""
    rate = ROTARY_BASE ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angle = torch.arange(first, last, device=like.device, dtype=torch.float32).outer(rate)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x_BHND: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    left, right = x_BHND.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


class Attention(nn.Module):
    """x (B, N, d) to (B, N, d), causal, O(N^2); starts as zero."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.output = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        nn.init.zeros_(self.output.weight)

    def forward(self, x_BNd: Tensor) -> Tensor:
        q, k, v = self._project(x_BNd, 0)
        return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, x_Bd: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        q, k, v = self._project(x_Bd.unsqueeze(1), cache.keys.shape[2])
        cache = Cache(torch.cat([cache.keys, k], dim=2), torch.cat([cache.values, v], dim=2))
        mixed = F.scaled_dot_product_attention(q, cache.keys, cache.values)
        return self._merge(mixed).squeeze(1), cache

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


class Block(nn.Module):
    """x += attention(RMSNorm(x)); x += feed-forward(RMSNorm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.d_model, config.n_heads)
        self.feed_forward = FeedForward(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(rms_norm(x))
        return x + self.feed_forward(rms_norm(x))

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        mixed, cache = self.attention.step(rms_norm(x), cache)
        x = x + mixed
        return x + self.feed_forward(rms_norm(x)), cache


class Transformer(nn.Module):
    """Token ids (B, N) to next-token logits (B, N, V); UserError for ids outside [0, V) and for no tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = token_embedding(config.vocab_size, config.d_model)
        blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.blocks = cast("Sequence[Block]", blocks)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        return self.head(self.hidden(tokens_BN))

    def hidden(self, tokens_BN: Tensor) -> Tensor:
        """The normalised final states (B, N, d): `head` of any slice of them gives that slice's logits."""
        check_tokens(tokens_BN, 2, self.config.vocab_size)
        x = rms_norm(self.embedding(tokens_BN))
        for block in self.blocks:
            x = block(x)
        return rms_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., d) to logits (..., V), with the embedding's own matrix."""
        return F.linear(hidden, self.embedding.weight)

    def initial_state(self, batch: int) -> State:
        """The state of `batch` sequences before their first token; it grows with every token."""
        heads = self.config.n_heads
        empty = self.embedding.weight.new_zeros(batch, heads, 0, self.config.d_model // heads)
        return State(0, (Cache(empty, empty),) * self.config.n_layers)

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token a sequence: logits (B, V) for the next, and the new state (the old stays valid)."""
        check_tokens(tokens_B, 1, self.config.vocab_size)
        x = rms_norm(self.embedding(tokens_B))
        caches = []
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x, after = block.step(x, cache)
            caches.append(after)
        return self.head(rms_norm(x)), State(state.position + 1, tuple(caches))
