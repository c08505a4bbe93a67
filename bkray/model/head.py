"""The output head in chunks: losses and scores of many positions without their logits as a whole.

    final states (M, d) ─► head, some rows at a time ─► logits (m, V) ─► cross-entropies (M,)
             ▲                                                                  │
             └──── backward pass of the head, its logits computed again ◄───────┘

Logits (M, V) never exist as a whole, neither way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256
"""Rows whose logits exist at a time in training, at least."""
GPU_LOGITS = 1 << 25
"""Logits that exist at a time on a GPU, which short products leave idle: 128 MiB in float32."""


def chunked_logits(head: Callable[[Tensor], Tensor], hidden_Md: Tensor, rows: int) -> Iterator[Tensor]:
    """The float32 logits of final states (M, d), at most (`rows`, V) at a time."""
    return (head(hidden).float() for hidden in hidden_Md.split(rows))


def cross_entropies(logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row (M,), nats, and the logarithm of its sum of exponentials (M,)."""
    sums_M = logits_MV.logsumexp(-1)
    return sums_M - logits_MV.gather(1, targets_M.unsqueeze(1)).squeeze(1), sums_M


def head_losses(hidden: Tensor, weight_Vd: Tensor, targets_M: Tensor) -> Tensor:
    """Cross-entropies (M,), float32, of the logits of final states (…, d), M of them, and the head's matrix.

    Rows whose gradient is zero are left out of the backward pass. Products are in autocast's precision.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight_Vd = hidden.to(dtype), weight_Vd.to(dtype)
    losses_M: Tensor = _HeadLosses.apply(hidden.flatten(0, -2), weight_Vd, targets_M)
    return losses_M


def _rows(weight_Vd: Tensor) -> int:
    return max(CHUNK, GPU_LOGITS // len(weight_Vd)) if weight_Vd.is_cuda else CHUNK


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_Md: Tensor, weight_Vd: Tensor, targets_M: Tensor) -> Tensor:
        rows = _rows(weight_Vd)
        chunks = chunked_logits(lambda hidden: F.linear(hidden, weight_Vd), hidden_Md, rows)
        pairs = [cross_entropies(*pair) for pair in zip(chunks, targets_M.split(rows), strict=True)]
        losses_M, sums_M = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        ctx.save_for_backward(hidden_Md, weight_Vd, targets_M, sums_M)
        return losses_M

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_Md, weight_Vd, targets_M, sums_M = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden_Md)
        to_weight = torch.zeros_like(weight_Vd, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in gradient_M.nonzero().squeeze(1).split(_rows(weight_Vd)):
            hidden = hidden_Md[rows]
            to_logits = (F.linear(hidden, weight_Vd).float() - sums_M[rows].unsqueeze(1)).exp_()
            to_logits[torch.arange(len(rows), device=rows.device), targets_M[rows]] -= 1
            to_logits = to_logits.mul_(gradient_M[rows].unsqueeze(1)).to(weight_Vd.dtype)
            to_hidden[rows] = to_logits @ weight_Vd
            if to_weight is not None:
                to_weight += to_logits.T @ hidden
        return to_hidden, to_weight if to_weight is None else to_weight.to(weight_Vd.dtype), None
