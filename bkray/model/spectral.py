"""Spectral mixing: the Ward-normalised causal resolvent, given by gates and phases.

    f, omega ─► spectral_mix ──► cos, sin ──► spectral_scan ──► h_i = f_i exp(-i omega_i) h_{i-1} + c_i x_i
                                                   │              c_i = sqrt(1 - f_i^2), f_0 = 0
                        bkray::spectral_scan ◄─────┴─────► bkray::spectral_scan_backward
                        (torch.library operators: fake tensors, autograd and the FLOP counter know them)

`resolvent.operator_of(f, omega)` gives the tridiagonal operator whose resolvent this is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from bkray.model.arguments import at_least_float32, check_finite, check_range, check_sequence, spread
from bkray.model.backends import choose_backend, run_kernel
from bkray.model.operators import operator
from bkray.model.recurrences import TORCH, adjoint, shifted

Tensor = torch.Tensor

FORWARD_FLOPS, BACKWARD_FLOPS = 13, 29
"""Floating-point operations an element, counted from `kernels.scan_forward` and `kernels.scan_backward`."""


def spectral_mix(f: Tensor, omega: Tensor, x: Tensor, *, backend: str = "auto") -> Tensor:
    """h = W diag(1/u) x: W the Ward-normalised causal resolvent of the operator that f and omega stand for.

    That operator is `operator_of(f, omega)`, and u = exp(i(pi - omega)). f in [0, 1) (at site 0 it counts
    as 0) and omega in (0, pi), radians, both broadcastable to x (B, N, C) real. Returns complex (B, N, C),
    in float32 or the wider dtype given. Raises UserError for values outside these ranges, NaN, infinities,
    shapes that do not fit, and an unknown or unavailable backend.
    """
    check_sequence(x, 3, "x")
    f, omega, x = at_least_float32(f, omega, x)
    f = spread(f, x.shape, "f")
    check_range(f[:, 1:], "f", "in [0, 1)", 0, 1, low_allowed=True)
    check_range(omega, "omega", "in (0, pi)", 0, math.pi)
    check_finite(x, "x")
    return torch.complex(*spectral_scan(f, omega.cos(), omega.sin(), x, backend=backend))


def spectral_scan(
    f: Tensor,
    cos_omega: Tensor,
    sin_omega: Tensor,
    x: Tensor,
    *,
    normalise: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of `spectral_mix`, without trigonometry and without checks of the values.

    All broadcastable to x (B, N, C) real; returns two (B, N, C). Not normalised, c_i = 1 and f may be any
    real.
    """
    check_sequence(x, 3, "x")
    f, cos_omega, sin_omega, x = at_least_float32(f, cos_omega, sin_omega, x)
    gates = [spread(t, x.shape, name) for t, name in ((f, "f"), (cos_omega, "cos"), (sin_omega, "sin"))]
    return _scan(*gates, x.contiguous(), normalise, choose_backend(backend, x))


@operator("bkray::spectral_scan")
def _scan(
    f: Tensor, cos: Tensor, sin: Tensor, x: Tensor, normalise: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Re h and Im h."""
    if backend in TORCH:
        gain = (1 - f[:, 1:] ** 2).sqrt() if normalise else torch.ones_like(f[:, 1:])
        drive = torch.cat([x[:, :1], gain * x[:, 1:]], dim=1)
        h = TORCH[backend].linear(f * torch.complex(cos, -sin), torch.complex(drive, torch.zeros_like(x)))
        return _part(h.real), _part(h.imag)
    h_re, h_im = torch.empty_like(x), torch.empty_like(x)
    if backend == "triton":
        from bkray.model import triton_kernels

        triton_kernels.scan_forward(f, cos, sin, x, h_re, h_im, normalise)
    else:
        from bkray.model.kernels.scan import scan_forward

        run_kernel(scan_forward, f, cos, sin, x, h_re, h_im, normalise)
    return h_re, h_im


@operator("bkray::spectral_scan_backward")
def _scan_backward(
    g_re: Tensor,
    g_im: Tensor,
    f: Tensor,
    cos: Tensor,
    sin: Tensor,
    x: Tensor,
    h_re: Tensor,
    h_im: Tensor,
    normalise: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of f, cos, sin and x."""
    saved = (g_re, g_im, f, cos, sin, x, h_re, h_im)
    if backend in TORCH:
        return _torch_backward(*saved, normalise, backend)
    d_f, d_cos, d_sin, d_x = (torch.empty_like(x) for _ in range(4))
    if backend == "triton":
        from bkray.model import triton_kernels

        triton_kernels.scan_backward(*saved, d_f, d_cos, d_sin, d_x, normalise)
    else:
        from bkray.model.kernels.scan import scan_backward

        run_kernel(scan_backward, *saved, d_f, d_cos, d_sin, d_x, normalise)
    return d_f, d_cos, d_sin, d_x


def _torch_backward(
    g_re: Tensor,
    g_im: Tensor,
    f: Tensor,
    cos: Tensor,
    sin: Tensor,
    x: Tensor,
    h_re: Tensor,
    h_im: Tensor,
    normalise: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f = torch.cat([torch.zeros_like(f[:, :1]), f[:, 1:]], dim=1)
    reached = adjoint(TORCH[backend].linear, f * torch.complex(cos, -sin), torch.complex(g_re, g_im))
    d_turn = reached * shifted(torch.complex(h_re, h_im)).conj()
    gain = (1 - f**2).sqrt() if normalise else torch.ones_like(f)
    d_f = d_turn.real * cos - d_turn.imag * sin
    if normalise:
        d_f = d_f - f * x * reached.real / gain
    return d_f, f * d_turn.real, -f * d_turn.imag, gain * reached.real


def _part(t: Tensor) -> Tensor:
    """A real tensor of its own: what an operator returns must not be a view."""
    return t.clone(memory_format=torch.contiguous_format)


@_scan.register_fake
def _(f: Tensor, cos: Tensor, sin: Tensor, x: Tensor, normalise: bool, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@_scan_backward.register_fake
def _(g_re: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(g_re) for _ in range(4))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.normalise, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, g_re: Tensor, g_im: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _scan_backward(
        g_re.contiguous(), g_im.contiguous(), *ctx.saved_tensors, ctx.normalise, ctx.backend
    )
    return *gradients, None, None


_scan.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.bkray.spectral_scan)
def _forward_flops(f_shape: tuple[int, ...], *others: Any, **keywords: Any) -> int:
    return FORWARD_FLOPS * math.prod(f_shape)


@register_flop_formula(torch.ops.bkray.spectral_scan_backward)
def _backward_flops(g_shape: tuple[int, ...], *others: Any, **keywords: Any) -> int:
    return BACKWARD_FLOPS * math.prod(g_shape)
