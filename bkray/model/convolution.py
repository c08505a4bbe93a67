"""Causal depthwise convolution of a few taps, in one fused pass each way.

x (B, N, C), taps (C, 1, K) ─► y_i = sum_k taps_k x_{i-K+1+k}, x counting as 0 before the first site
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from bkray.config import UserError
from bkray.model.arguments import at_least_float32, check_sequence
from bkray.model.backends import choose_backend, run_kernel
from bkray.model.operators import operator

Tensor = torch.Tensor

TAPS = 4


class CausalConvolution(nn.Module):
    """x (B, N, C) to (B, N, C) by `taps` (C, 1, 4), a channel its own; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(channels, 1, TAPS))
        nn.init.ones_(self.taps[:, 0, -1])

    def forward(self, x_BNC: Tensor) -> Tensor:
        return causal_convolution(x_BNC, self.taps)

    def initial_state(self, batch: int) -> Tensor:
        """The inputs before the first site: zeros (B, 3, C)."""
        return self.taps.new_zeros(batch, TAPS - 1, self.taps.shape[0])

    def step(self, x_BC: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """One site after the last inputs `window`, and the last inputs then."""
        window = torch.cat([window, x_BC.unsqueeze(1)], dim=1)
        return (window * self.taps[:, 0].T).sum(1), window[:, 1:]


def causal_convolution(x: Tensor, taps: Tensor, *, backend: str = "auto") -> Tensor:
    """Depthwise causal convolution of x (B, N, C) with taps (C, 1, K), shaped as for `conv1d` with groups=C.

    Returns (B, N, C) in float32 or the wider dtype given. Raises UserError for an unusable backend or shape.
    """
    check_sequence(x, 3, "x")
    if taps.ndim != 3 or taps.shape[:2] != (x.shape[2], 1):
        shape = tuple(taps.shape)
        raise UserError(f"taps of shape {shape} do not go with the {x.shape[2]} channels of x: (C, 1, K)")
    x, taps = at_least_float32(x, taps)
    if choose_backend(backend, x) == "numba":
        return _convolve(x.contiguous(), taps.permute(1, 2, 0).contiguous())
    # Shifted sums, not conv1d: an algorithm of a library's choice might let later sites into the rounding.
    kernel, padded = taps.permute(2, 1, 0), F.pad(x, (0, 0, taps.shape[2] - 1, 0))
    return sum(
        (padded[:, k : k + x.shape[1]] * tap for k, tap in enumerate(kernel[1:], 1)),
        padded[:, : x.shape[1]] * kernel[0],
    )


@operator("bkray::causal_convolution")
def _convolve(x: Tensor, taps: Tensor) -> Tensor:
    from bkray.model.kernels.scan import convolution_forward

    y = torch.empty_like(x)
    run_kernel(convolution_forward, x, taps, y)
    return y


@operator("bkray::causal_convolution_backward")
def _convolve_backward(g: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    from bkray.model.kernels.scan import convolution_backward

    d_x, d_taps = torch.empty_like(x), x.new_empty(x.shape[0], *taps.shape[1:])
    run_kernel(convolution_backward, g, x, taps, d_x, d_taps)
    return d_x, d_taps.sum(0, keepdim=True)


@_convolve.register_fake
def _(x: Tensor, taps: Tensor) -> Tensor:
    return torch.empty_like(x)


@_convolve_backward.register_fake
def _(g: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(taps)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    return _convolve_backward(g.contiguous(), *ctx.saved_tensors)


_convolve.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.bkray.causal_convolution)
def _forward_flops(
    x_shape: tuple[int, ...], taps_shape: tuple[int, ...], *others: Any, **keywords: Any
) -> int:
    return 2 * taps_shape[1] * math.prod(x_shape)


@register_flop_formula(torch.ops.bkray.causal_convolution_backward)
def _backward_flops(
    g_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    taps_shape: tuple[int, ...],
    *others: Any,
    **keywords: Any,
) -> int:
    return 4 * taps_shape[1] * math.prod(x_shape)
