"""Which tensor stopped being finite, for one reduction a tensor where all are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first floating-point tensor that holds NaN or an infinity, or None."""
    pairs = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    if not pairs:
        return None
    # The largest magnitude: NaN stays NaN, and unlike a sum of squares it never overflows by itself.
    largest = torch._foreach_norm([tensor for _, tensor in pairs], float("inf"))
    finite = torch.stack([norm.float().cpu() for norm in largest]).isfinite().tolist()
    return next((name for (name, _), good in zip(pairs, finite, strict=True) if not good), None)
