"""What both models are made of: RMSNorm, the feed-forward layer, the tied embedding.

The two `Function`s compute what their one-line forward says; their backward does by hand, in half the passes
over memory, what autograd would do by composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Tensor = torch.Tensor

EPSILON = 1e-6


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.rms_norm(x, x.shape[-1:], eps=EPSILON)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        size = x.shape[-1]
        rate = torch.rsqrt(torch.linalg.vecdot(x, x).unsqueeze(-1) / size + EPSILON)
        shared = torch.linalg.vecdot(g, x).unsqueeze(-1) * rate.square() / -size
        return torch.addcmul(g, x, shared).mul_(rate)


class _ReLUSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kept = F.relu(x)
        ctx.save_for_backward(kept)
        return kept * kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return (g * kept).mul_(2)


def rms_norm(x: Tensor) -> Tensor:
    """x (..., d) over its root mean square; no gain, which the matrix that follows would repeat."""
    return _RMSNorm.apply(x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (Primer, arXiv 2109.08668)."""
    return _ReLUSquared.apply(x)


class FeedForward(nn.Module):
    """x (..., d) to (..., d) through `width` channels (None: 4d); starts as zero."""

    def __init__(self, d_model: int, width: int | None = None) -> None:
        super().__init__()
        width = width or 4 * d_model
        self.up = nn.Linear(d_model, width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(relu_squared(self.up(x)))


def token_embedding(vocab_size: int, d_model: int) -> nn.Embedding:
    """The embedding that is also the head, (V, d), standard deviation 0.02."""
    embedding = nn.Embedding(vocab_size, d_model)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding
