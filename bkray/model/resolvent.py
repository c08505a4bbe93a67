"""The resolvent G = (H - i eta)^-1 of a tridiagonal operator H: diagonal a, couplings b, absorption eta > 0.

    a, b, eta ─► L_i = 1 / (a_i - i eta_i - b_i^2 L_{i-1}) ─┬─► resolvent_diagonal  causal: L; else: G_ii
                                                            └─► resolvent_mix       Ward-normalised, times x
    f, omega ─► operator_of ─► the a, b, eta for which L_i = exp(i(pi - omega_i)); see spectral.py

b_i couples sites i-1 and i, so b at site 0 is unused. Cost O(N); L is bounded by 1/min(eta), hence no clamps.
L and the mixing are torch.library operators, bkray::resolvent_diagonal and bkray::resolvent_mix: autograd,
torch.compile and the FLOP counter know them. L keeps b and itself for backward, the mixing inputs and output.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from bkray.config import UserError
from bkray.model.arguments import at_least_float32, check_finite, check_range, check_sequence, spread
from bkray.model.backends import choose_backend, run_kernel
from bkray.model.operators import operator
from bkray.model.recurrences import TORCH, adjoint, shifted

Tensor = torch.Tensor

DIAGONAL_FLOPS, DIAGONAL_BACKWARD_FLOPS = 10, 23
"""Floating-point operations an element of a, counted from the kernels."""
MIX_FLOPS, MIX_BACKWARD_FLOPS = 8, 30
"""The same, an element of x; what is done once a head is not counted."""


def resolvent_diagonal(
    a: Tensor, b: Tensor, eta: Tensor, *, causal: bool = True, backend: str = "auto", check: bool = True
) -> Tensor:
    """Last diagonal element of every leading block's resolvent or, not causal, G_ii of the whole chain.

    a (B, N, H) real; b and eta > 0 broadcastable to it. Returns complex (B, N, H). The whole chain's G_ii
    depends on later sites: a next-token model built on it reads its own targets. Raises UserError for NaN,
    infinities, eta <= 0, shapes that do not fit, and an unknown or unavailable backend. Without `check` the
    values are taken as they are: what is not finite goes on to the result.
    """
    a, b, eta = _prepared(a, b, eta, check)
    backend = choose_backend(backend, a)
    left = _diagonal(a, b, eta, backend)
    if causal:
        return left
    onwards = shifted(b, -1)
    right = _diagonal(a.flip(1), onwards.flip(1), eta.flip(1), backend).flip(1)
    before = onwards * onwards * shifted(right, -1)
    return 1 / (torch.complex(a, -eta) - _used(b) ** 2 * shifted(left) - before)


def resolvent_mix(
    a: Tensor, b: Tensor, eta: Tensor, x: Tensor, *, backend: str = "auto", check: bool = True
) -> Tensor:
    """y_i = sum_{j<=i} sqrt(eta_j) G_ij x_j / sqrt(Im L_i), G the resolvent of the leading block up to i.

    a (B, N, H) real, b and eta > 0 broadcastable to it, x (B, N, H, D) real. Returns complex (B, N, H, D).
    The weights have unit norm (Ward identity). Computed as y_i = u_i (c_i x_i - f_i y_{i-1}) with u =
    L/|L|, c^2 = eta/D, f = b sqrt(Im L_{i-1}/D_i), D_i = eta_i + b_i^2 Im L_{i-1}: no division by Im L.
    `check` and UserErrors are those of `resolvent_diagonal`.
    """
    check_sequence(x, 4, "x")
    if x.shape[:3] != a.shape:
        raise UserError(
            f"x of shape {tuple(x.shape)} does not go with a of shape {tuple(a.shape)}: (B, N, H, D)"
        )
    a, b, eta, x = at_least_float32(a, b, eta, x)
    if check:
        check_finite(x, "x")
    a, b, eta = _prepared(a, b, eta, check)
    return _mix(a, b, eta, x.contiguous(), choose_backend(backend, a))


def operator_of(f: Tensor, omega: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operator (a, b, eta) whose Ward-normalised causal resolvent `spectral_mix(f, omega, x)` applies.

    f in [0, 1), omega in (0, pi), broadcastable to one shape (B, N, C), which a, b and eta get. With
    theta = pi - omega: a_i = cos theta_i + f_i^2 sin theta_i cot theta_{i-1}, b_i^2 = f_i^2 sin theta_i /
    sin theta_{i-1}, eta_i = (1 - f_i^2) sin theta_i, f_0 = 0. Then L_i = exp(i theta_i). Raises UserError for
    values outside these ranges.
    """
    f, omega = torch.broadcast_tensors(*at_least_float32(f, omega))
    check_sequence(f, 3, "f")
    check_range(omega, "omega", "in (0, pi)", 0, math.pi)
    check_range(f[:, 1:], "f", "in [0, 1)", 0, 1, low_allowed=True)
    f = torch.cat([torch.zeros_like(f[:, :1]), f[:, 1:]], dim=1)
    sin, cos = omega.sin(), -omega.cos()
    before_sin, before_cos = (torch.cat([t[:, :1], t[:, :-1]], dim=1) for t in (sin, cos))
    a = cos + f * f * sin * before_cos / before_sin
    return a, f * (sin / before_sin).sqrt(), (1 - f * f) * sin


def _prepared(a: Tensor, b: Tensor, eta: Tensor, check: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three in one shape and dtype, contiguous, their values checked if asked for."""
    check_sequence(a, 3, "a")
    a, b, eta = at_least_float32(a, b, eta)
    b, eta = spread(b, a.shape, "b"), spread(eta, a.shape, "eta")
    if check:
        # |L|^2, at most 1 / eta^2, must be a number, and so must |1 / L|^2: it has a, eta and b^2 L in it
        info = torch.finfo(a.dtype)
        largest, least = info.max**0.5 / 2, info.tiny**0.5
        check_range(a, "a", f"finite, within +-{largest:.1e}", -largest, largest)
        check_range(eta, "eta", f"positive, above {least:.1e}, and below {largest:.1e}", least, largest)
        check_finite(b[:, 1:], "b")
        below = eta.detach()
        coupling = b.detach()[:, 1:].square() / torch.minimum(below[:, :-1], below[:, 1:])
        check_range(
            coupling, "b^2 over the smaller eta of its two sites", f"below {largest:.1e}", high=largest
        )
    return a.contiguous(), b, eta


@operator("bkray::resolvent_diagonal")
def _diagonal(a: Tensor, b: Tensor, eta: Tensor, backend: str) -> Tensor:
    """L (B, N, H) complex."""
    if backend in TORCH:
        return TORCH[backend].leading(a, b, eta)
    left = _complex_like(a)
    if backend == "triton":
        from bkray.model.triton_kernels import diagonal_forward

        diagonal_forward(a, b, eta, left)
    else:
        from bkray.model.kernels import resolvent as kernels

        run_kernel(kernels.diagonal_forward, a, b, eta, torch.view_as_real(left))
    return left


@operator("bkray::resolvent_diagonal_backward")
def _diagonal_backward(g: Tensor, b: Tensor, left: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and eta from g, the gradient of L."""
    if backend in TORCH:
        b, square = _used(b), left * left
        q = square * adjoint(TORCH[backend].linear, b * b * square, g).conj()
        return -q.real, 2 * b * (q * shifted(left)).real, -q.imag
    d_a, d_b, d_eta = (torch.empty_like(b) for _ in range(3))
    if backend == "triton":
        from bkray.model.triton_kernels import diagonal_backward

        diagonal_backward(g, b, left, d_a, d_b, d_eta)
    else:
        from bkray.model.kernels import resolvent as kernels

        parts = [torch.view_as_real(t) for t in (g, left)]
        run_kernel(kernels.diagonal_backward, b, *parts, d_a, d_b, d_eta)
    return d_a, d_b, d_eta


@operator("bkray::resolvent_mix")
def _mix(a: Tensor, b: Tensor, eta: Tensor, x: Tensor, backend: str) -> Tensor:
    """y (B, N, H, D) complex."""
    if backend in TORCH:
        ward = _ward(b, eta, TORCH[backend].leading(a, b, eta))
        turn, drive = (-ward.u * ward.f).unsqueeze(-1), (ward.u * ward.c).unsqueeze(-1)
        return TORCH[backend].linear(turn, drive * x)
    y = _complex_like(x)
    if backend == "triton":
        from bkray.model.triton_kernels import mix_forward

        mix_forward(a, b, eta, x, y)
    else:
        from bkray.model.kernels import resolvent as kernels

        run_kernel(kernels.mix_forward, a, b, eta, x, torch.view_as_real(y), groups=1)
    return y


@operator("bkray::resolvent_mix_backward")
def _mix_backward(
    g: Tensor, a: Tensor, b: Tensor, eta: Tensor, x: Tensor, y: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a, b, eta and x from g, the gradient of y; L is computed again, it is small beside y."""
    left = _diagonal(a, b, eta, backend)
    if backend in TORCH:
        return _mix_adjoint(g, b, eta, x, y, left, backend)
    d_a, d_b, d_eta, d_x = (torch.empty_like(t) for t in (a, b, eta, x))
    if backend == "triton":
        from bkray.model.triton_kernels import mix_backward

        mix_backward(g, b, eta, x, y, left, d_a, d_b, d_eta, d_x)
    else:
        from bkray.model.kernels import resolvent as kernels

        parts = [torch.view_as_real(t) for t in (g, y, left)]
        run_kernel(kernels.mix_backward, b, eta, x, *parts, d_a, d_b, d_eta, d_x, groups=1)
    return d_a, d_b, d_eta, d_x


def _used(b: Tensor) -> Tensor:
    """The couplings, 0 at site 0, whatever is given there."""
    return torch.cat([torch.zeros_like(b[:, :1]), b[:, 1:]], dim=1)


class _Ward(NamedTuple):
    """u = L/|L|, D and the gates c, f of `resolvent_mix`; q = Im L_{i-1}/D, so that f = b sqrt(q)."""

    u: Tensor
    d: Tensor
    c: Tensor
    f: Tensor
    q: Tensor


def _ward(b: Tensor, eta: Tensor, left: Tensor) -> _Ward:
    before = shifted(left.imag)
    b = _used(b)
    d = eta + b * b * before
    q = before / d
    return _Ward(left / left.abs(), d, (eta / d).sqrt(), b * q.sqrt(), q)


def _mix_adjoint(
    g: Tensor, b: Tensor, eta: Tensor, x: Tensor, y: Tensor, left: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First the adjoint of the mixing, given L; then what reaches L, backwards through its recursion.

    With w = r + i D, L = 1/conj(w) and u = w/|w| = exp(i phi): d phi/dr = -Im L, d phi/dD = Re L.
    """
    linear, (u, d, c, f, q) = TORCH[backend].linear, _ward(b, eta, left)
    b = _used(b)
    reached = adjoint(linear, (-u * f).unsqueeze(-1), g)
    driven = u.conj().unsqueeze(-1) * reached
    g_phi = (y.conj() * reached).imag.sum(-1)
    g_c = (driven.real * x).sum(-1)
    g_f = -(shifted(y).conj() * driven).real.sum(-1)
    to_r = -left.imag * g_phi
    to_d = left.real * g_phi - (g_c * c + g_f * f) / (2 * d)
    root = q.clamp_min(torch.finfo(q.dtype).tiny).sqrt()
    to_before = torch.where(q > 0, g_f * b / (2 * root * d), 0)  # through f alone, to Im L_{i-1}
    p, square = b * b, left * left
    to_left = adjoint(linear, p * square, shifted(torch.complex(-p * to_r, p * to_d + to_before), -1))
    inner = to_left.conj() * square
    d_r, d_d = to_r - inner.real, to_d - inner.imag
    d_p = d_d * shifted(left.imag) - d_r * shifted(left.real)
    return d_r, 2 * b * d_p + g_f * q.sqrt(), d_d + g_c * c / (2 * eta), c.unsqueeze(-1) * driven.real


def _complex_like(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype.to_complex(), device=t.device)


@_diagonal.register_fake
def _(a: Tensor, b: Tensor, eta: Tensor, backend: str) -> Tensor:
    return _complex_like(a)


@_diagonal_backward.register_fake
def _(g: Tensor, b: Tensor, left: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(b), torch.empty_like(b), torch.empty_like(b)


@_mix.register_fake
def _(a: Tensor, b: Tensor, eta: Tensor, x: Tensor, backend: str) -> Tensor:
    return _complex_like(x)


@_mix_backward.register_fake
def _(
    g: Tensor, a: Tensor, b: Tensor, eta: Tensor, x: Tensor, y: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), torch.empty_like(eta), torch.empty_like(x)


def _save_diagonal(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, b, _, ctx.backend = inputs
    ctx.save_for_backward(b, output)


def _save_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output)


def _backward_diagonal(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return *_diagonal_backward(g.resolve_conj().contiguous(), *ctx.saved_tensors, ctx.backend), None


def _backward_mix(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return *_mix_backward(g.resolve_conj().contiguous(), *ctx.saved_tensors, ctx.backend), None


_diagonal.register_autograd(_backward_diagonal, setup_context=_save_diagonal)
_mix.register_autograd(_backward_mix, setup_context=_save_mix)


@register_flop_formula(torch.ops.bkray.resolvent_diagonal)
def _diagonal_flops(a_shape: tuple[int, ...], *others: Any, **keywords: Any) -> int:
    return DIAGONAL_FLOPS * math.prod(a_shape)


@register_flop_formula(torch.ops.bkray.resolvent_diagonal_backward)
def _diagonal_backward_flops(g_shape: tuple[int, ...], *others: Any, **keywords: Any) -> int:
    return DIAGONAL_BACKWARD_FLOPS * math.prod(g_shape)


@register_flop_formula(torch.ops.bkray.resolvent_mix)
def _mix_flops(
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
    eta_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    *others: Any,
    **keywords: Any,
) -> int:
    return MIX_FLOPS * math.prod(x_shape)


@register_flop_formula(torch.ops.bkray.resolvent_mix_backward)
def _mix_backward_flops(g_shape: tuple[int, ...], *others: Any, **keywords: Any) -> int:
    return MIX_BACKWARD_FLOPS * math.prod(g_shape)
