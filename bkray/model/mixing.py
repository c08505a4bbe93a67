"""What a mixer does between its projections: gates, phases, scan and readout.

    forget ─► f^2 = sigmoid, clamped ──────┐
    head, tangent ─► tan(omega/2) ─────────┼─► h_i = f_i exp(-i omega_i) h_{i-1} + sqrt(1 - f_i^2) z_i ─┐
    z ─────────────────────────────────────┘                                                             │
    gate ─► SiLU ─────────────────────────────► y = Re(exp(i psi) h) SiLU(gate) ◄────────────────────────┘

On the CPU all of it is one pass over memory each way (bkray::spectral_mixing, bkray::real_mixing): long
sequences do not fit into caches, and a fresh array of 64 MiB costs more in page faults than the arithmetic
done on it. Elsewhere it is composed, line by line, of the functions below and `spectral_scan`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from bkray.model.arguments import at_least_float32
from bkray.model.backends import choose_backend, run_kernel
from bkray.model.operators import operator
from bkray.model.spectral import spectral_scan

Tensor = torch.Tensor

GATE_MARGIN = 1e-6
"""f^2 stays in [margin, 1 - margin]: the derivatives of sqrt(f^2) and sqrt(1 - f^2) stay finite."""
FORWARD_FLOPS, BACKWARD_FLOPS = 26, 67
REAL_FORWARD_FLOPS, REAL_BACKWARD_FLOPS = 8, 22
"""Floating-point operations an element, counted from the kernels."""


def spectral_mixing(
    z: Tensor,
    forget: Tensor,
    gate: Tensor,
    head: Tensor,
    tangent: Tensor,
    psi: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """y (B, N, C) as above, in float32 or the wider dtype given; a site before the first does not exist.

    z, forget and gate (B, N, C), the last two before their sigmoids; head (B, N, H) and tangent (C,), whose
    product is tan(omega/2): H divides C, and consecutive channels share a head; psi (C,), radians.
    """
    z, forget, gate, head, tangent, psi = at_least_float32(z, forget, gate, head, tangent, psi)
    backend = choose_backend(backend, z)
    if backend == "numba":
        tensors = (t.contiguous() for t in (z, forget, gate, head))
        return _spectral(*tensors, tangent, psi)[0]
    gates = forget_gate(forget), *rational_phase(head, tangent)
    return readout(*spectral_scan(*gates, z, backend=backend), psi) * F.silu(gate)


def real_mixing(z: Tensor, forget: Tensor, gate: Tensor, *, backend: str = "auto") -> Tensor:
    """`spectral_mixing` with all phases zero: the real gated recurrence that says what phases bring."""
    z, forget, gate = at_least_float32(z, forget, gate)
    backend = choose_backend(backend, z)
    if backend == "numba":
        return _real(*(t.contiguous() for t in (z, forget, gate)))[0]
    h, _ = spectral_scan(forget_gate(forget), z.new_ones(1), z.new_zeros(1), z, backend=backend)
    return h * F.silu(gate)


def forget_gate(logits: Tensor) -> Tensor:
    """f = sqrt(sigmoid(logits)), f^2 clamped."""
    return _ForgetGate.apply(logits)


def rational_phase(head: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """cos omega and sin omega (..., C) from tan(omega/2) = head (..., H) * tangent (C,)."""
    cos, sin = _RationalPhase.apply(head.unsqueeze(-1), tangent.view(head.shape[-1], -1))
    return cos.flatten(-2), sin.flatten(-2)


def readout(h_re: Tensor, h_im: Tensor, psi: Tensor) -> Tensor:
    """Re(exp(i psi) h)."""
    return torch.addcmul(psi.cos() * h_re, psi.sin(), h_im, value=-1)


class _ForgetGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        f = logits.sigmoid().clamp_(GATE_MARGIN, 1 - GATE_MARGIN).sqrt_()
        ctx.save_for_backward(f)
        return f

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (f,) = ctx.saved_tensors
        return torch.addcmul(f, f * f, f, value=-1).mul_(g).mul_(0.5)


class _RationalPhase(torch.autograd.Function):
    """From T = head (..., H, 1) * channel (H, C/H)."""

    @staticmethod
    def forward(ctx: Any, head: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
        tangent = head * channel
        inverse = torch.addcmul(torch.ones_like(tangent), tangent, tangent).reciprocal_()
        sin = tangent.mul_(inverse).mul_(2)
        cos = inverse.mul_(2).sub_(1)
        ctx.save_for_backward(head, channel, cos, sin)
        return cos, sin

    @staticmethod
    def backward(ctx: Any, g_cos: Tensor, g_sin: Tensor) -> tuple[Tensor, Tensor]:
        head, channel, cos, sin = ctx.saved_tensors
        d_omega = torch.addcmul(cos * g_sin, sin, g_cos, value=-1)
        d_tangent = torch.addcmul(d_omega, d_omega, cos)  # d omega / dT = 2 / (1 + T^2) = 1 + cos omega
        d_head = (d_tangent * channel).sum(-1, keepdim=True)
        return d_head, (d_tangent * head).flatten(0, -3).sum(0)


@operator("bkray::spectral_mixing")
def _spectral(
    z: Tensor, forget: Tensor, gate: Tensor, head: Tensor, tangent: Tensor, psi: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and Re h and Im h for backward."""
    from bkray.model.kernels.mixing import mixing_forward

    y, h_re, h_im = gate.sigmoid(), forget.sigmoid(), torch.empty_like(z)
    constants = (tangent.contiguous(), psi.cos(), psi.sin(), GATE_MARGIN)
    run_kernel(mixing_forward, z, gate, head, *constants, y, h_re, h_im, group=z.shape[2] // head.shape[2])
    return y, h_re, h_im


@operator("bkray::spectral_mixing_backward")
def _spectral_backward(
    g: Tensor,
    z: Tensor,
    forget: Tensor,
    gate: Tensor,
    head: Tensor,
    tangent: Tensor,
    psi: Tensor,
    h_re: Tensor,
    h_im: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, forget, gate, head, tangent and psi."""
    from bkray.model.kernels.mixing import mixing_backward

    d_z, d_forget, d_gate, d_head = (
        torch.empty_like(z),
        forget.sigmoid(),
        gate.sigmoid(),
        torch.empty_like(head),
    )
    d_tangent, d_psi = (z.new_empty(z.shape[0], z.shape[2]) for _ in range(2))
    constants = (tangent.contiguous(), psi.cos(), psi.sin(), GATE_MARGIN)
    gradients = (d_z, d_forget, d_gate, d_head, d_tangent, d_psi)
    per_head = z.shape[2] // head.shape[2]
    run_kernel(mixing_backward, z, g, gate, head, *constants, h_re, h_im, *gradients, group=per_head)
    return d_z, d_forget, d_gate, d_head, d_tangent.sum(0), d_psi.sum(0)


@operator("bkray::real_mixing")
def _real(z: Tensor, forget: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """y, and h for backward."""
    from bkray.model.kernels.mixing import real_mixing_forward

    y, h = gate.sigmoid(), forget.sigmoid()
    run_kernel(real_mixing_forward, z, gate, GATE_MARGIN, y, h)
    return y, h


@operator("bkray::real_mixing_backward")
def _real_backward(
    g: Tensor, z: Tensor, forget: Tensor, gate: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, forget and gate."""
    from bkray.model.kernels.mixing import real_mixing_backward

    d_z, d_forget, d_gate = torch.empty_like(z), forget.sigmoid(), gate.sigmoid()
    run_kernel(real_mixing_backward, z, g, gate, GATE_MARGIN, h, d_z, d_forget, d_gate)
    return d_z, d_forget, d_gate


@_spectral.register_fake
def _(z: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(z), torch.empty_like(z), torch.empty_like(z)


@_spectral_backward.register_fake
def _(g: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in inputs[:6])


@_real.register_fake
def _(z: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(z), torch.empty_like(z)


@_real_backward.register_fake
def _(g: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in inputs[:3])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # h is for backward alone: no zeros of its size for a gradient of it
    ctx.save_for_backward(*inputs, *output[1:])


def _backward(ctx: Any, g: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    if g is None:
        return (None,) * len(ctx.needs_input_grad)
    return (_real_backward if len(saved) == 4 else _spectral_backward)(g.contiguous(), *saved)


_spectral.register_autograd(_backward, setup_context=_save)
_real.register_autograd(_backward, setup_context=_save)


def _count(operator: Any, flops: int) -> None:
    """`flops` an element of the operator's first tensor."""

    @register_flop_formula(operator)
    def formula(shape: tuple[int, ...], *others: Any, **keywords: Any) -> int:
        return flops * math.prod(shape)


_count(torch.ops.bkray.spectral_mixing, FORWARD_FLOPS)
_count(torch.ops.bkray.spectral_mixing_backward, BACKWARD_FLOPS)
_count(torch.ops.bkray.real_mixing, REAL_FORWARD_FLOPS)
_count(torch.ops.bkray.real_mixing_backward, REAL_BACKWARD_FLOPS)
