"""Which tensor stopped being finite, for one reduction a tensor where all are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from bkray.training.parallel.shares import is_share, local


@torch.no_grad()
def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first floating-point tensor that holds NaN or an infinity, or None.

    Where tensors are divided among ranks it is a collective call with one answer.
    """
    pairs = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    if not pairs:
        return None
    here = [local(tensor) for _, tensor in pairs]
    # The largest magnitude: NaN stays NaN, and unlike a sum of squares it never overflows by itself.
    largest = iter(torch._foreach_norm([tensor for tensor in here if tensor.numel()], float("inf")))
    bad = (
        torch.stack([next(largest).float() if t.numel() else t.new_zeros(()) for t in here])
        .isfinite()
        .logical_not()
    )
    if any(is_share(tensor) for _, tensor in pairs):
        bad = bad.int()
        dist.all_reduce(bad)
    return next((name for (name, _), is_bad in zip(pairs, bad.tolist(), strict=True) if is_bad), None)
