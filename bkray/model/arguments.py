"""Checks and conversions that the operators share: a bad argument is named before any kernel sees it."""

from __future__ import annotations

import functools
import math

import torch

from bkray.config import UserError


def at_least_float32(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in one real dtype, float32 or wider: recursing in bfloat16 costs up to 8e-2/eta.

    Raises UserError for complex tensors.
    """
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    if dtype.is_complex:
        raise UserError(f"real tensors expected, not {dtype}: pass real and imaginary parts apart")
    return [tensor.to(dtype) for tensor in tensors]


def spread(tensor: torch.Tensor, shape: torch.Size, name: str) -> torch.Tensor:
    """`tensor` broadcast to `shape`, contiguous; UserError names it where that cannot be."""
    try:
        return tensor.expand(shape).contiguous()
    except RuntimeError as error:
        raise UserError(
            f"{name} of shape {tuple(tensor.shape)} cannot be broadcast to {tuple(shape)}"
        ) from error


def check_sequence(tensor: torch.Tensor, dimensions: int, name: str) -> None:
    """UserError unless `tensor` has so many dimensions and at least one site in the second."""
    if tensor.dim() != dimensions or tensor.shape[1] == 0:
        raise UserError(
            f"{name} must have {dimensions} dimensions with at least one site in the second, not shape "
            f"{tuple(tensor.shape)}"
        )


def check_range(
    tensor: torch.Tensor,
    name: str,
    rule: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_allowed: bool = False,
) -> None:
    """UserError with the first value of `tensor` not between the bounds, which are excluded; NaN never is.

    The usual case looks at the two extremes only: a mask would be memory of the tensor's size. Skipped while
    torch.compile traces, because a look at the values would break the graph.
    """
    if torch.compiler.is_compiling() or tensor.numel() == 0:
        return
    tensor = tensor.detach()
    least, greatest = (extreme.item() for extreme in tensor.aminmax())  # both NaN where there is one
    if not ((least >= low if low_allowed else least > low) and greatest < high):
        above = tensor >= low if low_allowed else tensor > low
        raise UserError(f"{name} must be {rule}, not {tensor[~(above & (tensor < high))][0].item()}")


def check_finite(tensor: torch.Tensor, name: str) -> None:
    """UserError where `tensor` holds NaN or an infinity."""
    check_range(tensor, name, "finite")


def check_tokens(tokens: torch.Tensor, dimensions: int, vocab_size: int) -> None:
    """UserError unless `tokens` are integer ids in [0, vocab_size), of so many dimensions and not empty."""
    if torch.compiler.is_compiling():
        return  # a look at the values would break the graph
    if tokens.dim() != dimensions or tokens.numel() == 0:
        names = "(B, N)" if dimensions == 2 else "(B,)"
        raise UserError(f"tokens must have shape {names} and not be empty, not {tuple(tokens.shape)}")
    if tokens.dtype not in (torch.int64, torch.int32):  # what an embedding takes
        raise UserError(f"tokens must be int64 or int32 ids, not {tokens.dtype}: convert them with .long()")
    low, high = (int(extreme) for extreme in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise UserError(f"token id {low if low < 0 else high} is outside the vocabulary [0, {vocab_size})")
