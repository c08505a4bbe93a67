"""The resolvent G = (H - i eta)^-1 of a tridiagonal operator H: diagonal a, couplings b, absorption eta > 0.

    a, b, eta ─► L_i = 1 / (a_i - i eta_i - b_i^2 L_{i-1}) ─┬─► resolvent_diagonal  causal: L; else: G_ii
                                                            └─► resolvent_mix       Ward-normalised, times x
    f, omega ─► operator_of ─► the a, b, eta for which L_i = exp(i(pi - omega_i)); see spectral.py

b_i couples sites i-1 and i, so b at site 0 is unused. Cost O(N); L is bounded by 1/min(eta), hence no clamps.
"""

from __future__ import annotations

from typing import Any

import torch

from bkray.config import UserError
from bkray.model.arguments import at_least_float32, check_finite, check_range, check_sequence, spread
from bkray.model.backends import choose_backend, run_kernel
from bkray.model.spectral import spectral_scan

Tensor = torch.Tensor


def resolvent_diagonal(
    a: Tensor, b: Tensor, eta: Tensor, *, causal: bool = True, backend: str = "auto"
) -> Tensor:
    """Last diagonal element of every leading block's resolvent or, not causal, G_ii of the whole chain.

    a (B, N, H) real; b and eta > 0 broadcastable to it. Returns complex (B, N, H). The whole chain's G_ii
    depends on later sites: a next-token model built on it reads its own targets. Raises UserError for NaN,
    infinities, eta <= 0, shapes that do not fit, and an unknown or unavailable backend.
    """
    a, b, eta = _checked(a, b, eta)
    backend = choose_backend(backend, a)
    left = torch.complex(*_leading(a, b * b, eta, backend))
    if causal:
        return left
    onwards = torch.cat([b[:, 1:], torch.zeros_like(b[:, :1])], dim=1)
    mirrored = _leading(a.flip(1), (onwards * onwards).flip(1), eta.flip(1), backend)
    right = torch.complex(*mirrored).flip(1)
    z = torch.complex(torch.zeros_like(eta), eta)
    return 1 / (a - z - b * b * _shifted(left) - onwards * onwards * _shifted(right, -1))


def resolvent_mix(a: Tensor, b: Tensor, eta: Tensor, x: Tensor, *, backend: str = "auto") -> Tensor:
    """y_i = sum_{j<=i} sqrt(eta_j) G_ij x_j / sqrt(Im L_i), G the resolvent of the leading block up to i.

    a (B, N, H) real, b and eta > 0 broadcastable to it, x (B, N, H, D) real. Returns complex (B, N, H, D).
    The weights have unit norm (Ward identity). Computed as y_i = u_i (c_i x_i - f_i y_{i-1}) with u =
    L/|L|, c^2 = eta/D, f = b sqrt(Im L_{i-1}/D_i), D_i = eta_i + b_i^2 Im L_{i-1}: no division by Im L.
    Raises UserError as `resolvent_diagonal` does.
    """
    check_sequence(x, 4, "x")
    check_finite(x, "x")
    a, b, eta = _checked(a, b, eta)
    if x.shape[:3] != a.shape:
        raise UserError(
            f"x of shape {tuple(x.shape)} does not go with a of shape {tuple(a.shape)}: (B, N, H, D)"
        )
    backend = choose_backend(backend, a)
    l_re, l_im = _leading(a, b * b, eta, backend)
    before_re, before_im = _shifted(l_re), _shifted(l_im)
    d = eta + b * b * before_im
    r = a - b * b * before_re
    modulus = torch.hypot(r, d)
    u_re, u_im = r / modulus, d / modulus
    tiny = torch.finfo(a.dtype).tiny  # the derivative of sqrt at 0 is infinite
    f = b * (before_im / d).clamp_min(tiny).sqrt()
    # With h = y / u: h_i = c_i x_i - f_i u_{i-1} h_{i-1}, a scan whose rotation is exp(-i omega) = -u_{i-1}.
    gate, cos, sin = (_per_value(t, x) for t in (f, -_shifted(u_re), _shifted(u_im)))
    drive = (x * (eta / d).sqrt().unsqueeze(-1)).flatten(2)
    h_re, h_im = spectral_scan(gate, cos, sin, drive, normalise=False, backend=backend)
    return torch.complex(u_re, u_im).unsqueeze(-1) * torch.complex(h_re, h_im).view(x.shape)


def operator_of(f: Tensor, omega: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operator (a, b, eta) whose Ward-normalised causal resolvent `spectral_mix(f, omega, x)` applies.

    f in [0, 1), omega in (0, pi), broadcastable to one shape (B, N, C), which a, b and eta get. With
    theta = pi - omega: a_i = cos theta_i + f_i^2 sin theta_i cot theta_{i-1}, b_i^2 = f_i^2 sin theta_i /
    sin theta_{i-1}, eta_i = (1 - f_i^2) sin theta_i, f_0 = 0. Then L_i = exp(i theta_i). Raises UserError for
    values outside these ranges.
    """
    f, omega = torch.broadcast_tensors(*at_least_float32(f, omega))
    check_sequence(f, 3, "f")
    check_range(omega, (omega > 0) & (omega < torch.pi), "omega", "in (0, pi)")
    check_range(f[:, 1:], (f[:, 1:] >= 0) & (f[:, 1:] < 1), "f", "in [0, 1)")
    f = torch.cat([torch.zeros_like(f[:, :1]), f[:, 1:]], dim=1)
    sin, cos = omega.sin(), -omega.cos()
    before_sin, before_cos = (torch.cat([t[:, :1], t[:, :-1]], dim=1) for t in (sin, cos))
    a = cos + f * f * sin * before_cos / before_sin
    return a, f * (sin / before_sin).sqrt(), (1 - f * f) * sin


def _checked(a: Tensor, b: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three in one shape and dtype, b zero at site 0."""
    check_sequence(a, 3, "a")
    a, b, eta = at_least_float32(a, b, eta)
    b, eta = spread(b, a.shape, "b"), spread(eta, a.shape, "eta")
    check_finite(a, "a")
    check_finite(b[:, 1:], "b")
    check_range(eta, eta > 0, "eta", "positive and finite")
    return a.contiguous(), torch.cat([torch.zeros_like(b[:, :1]), b[:, 1:]], dim=1), eta


def _shifted(t: Tensor, by: int = 1) -> Tensor:
    """Each site's predecessor (by=1) or successor (by=-1), 0 beyond the end."""
    end = torch.zeros_like(t[:, :1])
    return torch.cat([end, t[:, :-1]] if by == 1 else [t[:, 1:], end], dim=1)


def _per_value(t_BNH: Tensor, x_BNHD: Tensor) -> Tensor:
    return t_BNH.unsqueeze(-1).expand(x_BNHD.shape).flatten(2)


def _leading(a: Tensor, p: Tensor, eta: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Re L and Im L, each (B, N, H), from p = b^2 with p_0 = 0."""
    if backend == "numba":
        return _Leading.apply(a, p, eta)
    re, im = torch.zeros_like(a[:, 0]), torch.zeros_like(a[:, 0])
    sites = []
    for i in range(a.shape[1]):
        d = eta[:, i] + p[:, i] * im
        r = a[:, i] - p[:, i] * re
        re, im = r / (r * r + d * d), d / (r * r + d * d)
        sites.append((re, im))
    parts = zip(*sites, strict=True)
    l_re, l_im = (torch.stack(part, dim=1) for part in parts)
    return l_re, l_im


class _Leading(torch.autograd.Function):
    """The compiled recursion with its exact adjoint; only L and p are saved."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, p: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        from bkray.model.kernels import resolvent_forward

        a, p, eta = a.contiguous(), p.contiguous(), eta.contiguous()
        l_re, l_im = torch.empty_like(a), torch.empty_like(a)
        run_kernel(resolvent_forward, *(t.detach() for t in (a, p, eta)), l_re, l_im)
        ctx.save_for_backward(p, l_re, l_im)
        return l_re, l_im

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_re: Tensor, g_im: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from bkray.model.kernels import resolvent_backward

        d_a, d_p, d_eta = (torch.empty_like(g_re, memory_format=torch.contiguous_format) for _ in range(3))
        saved = [t.detach() for t in ctx.saved_tensors]
        run_kernel(resolvent_backward, g_re.contiguous(), g_im.contiguous(), *saved, d_a, d_p, d_eta)
        return d_a, d_p, d_eta
