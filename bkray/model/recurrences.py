"""The two recursions in plain torch, on any device: a loop over N, and the same in chunks.

    linear    h_i = A_i h_{i-1} + B_i                            h_{-1} = 0
    leading   L_i = 1 / (a_i - i eta_i - b_i^2 L_{i-1})          L_{-1} = 0

The loop is slow and obvious. The chunked form cuts N into about sqrt(N) chunks of about sqrt(N) sites:

    summary   what each chunk does to whatever enters it, all chunks at once     sqrt(N) steps
    carry     the state that enters each chunk, one after the other              sqrt(N) steps
    rerun     each chunk from the state that enters it, all chunks at once       sqrt(N) steps

The summary of a chunk is exact (a product of maps), so nothing converges and nothing is tested for
convergence: a stopping test would look at all sites and leak the future. Whatever reaches site i is computed
from sites up to i alone, in an order fixed by N, so a change of a later site changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Recurrences(NamedTuple):
    """The two recursions of one backend."""

    linear: Callable[[Tensor, Tensor], Tensor]
    leading: Callable[[Tensor, Tensor, Tensor], Tensor]


def adjoint(linear: Callable[[Tensor, Tensor], Tensor], a: Tensor, g: Tensor) -> Tensor:
    """lambda_i = g_i + conj(A_{i+1}) lambda_{i+1}: the gradient that reaches h_i, from g at h."""
    return linear(shifted(a.conj().flip(1)), g.flip(1)).flip(1)


def shifted(t: Tensor, by: int = 1) -> Tensor:
    """Each site's predecessor (by=1) or successor (by=-1), 0 beyond the end."""
    end = torch.zeros_like(t[:, :1])
    return torch.cat([end, t[:, :-1]] if by == 1 else [t[:, 1:], end], dim=1)


def _linear_loop(a: Tensor, b: Tensor) -> Tensor:
    h = b.clone()
    for i in range(1, b.shape[1]):
        h[:, i] += a[:, i] * h[:, i - 1]
    return h


def _leading_loop(a: Tensor, b: Tensor, eta: Tensor) -> Tensor:
    p = b * b
    left = [_element(a[:, 0], eta[:, 0])]
    for i in range(1, a.shape[1]):
        before = left[-1]
        left.append(_element(a[:, i] - p[:, i] * before.real, eta[:, i] + p[:, i] * before.imag))
    return torch.stack(left, dim=1)


def _element(r: Tensor, d: Tensor) -> Tensor:
    """1 / (r - i d)."""
    square = r * r + d * d
    return torch.complex(r / square, d / square)


def _linear_chunks(a: Tensor, b: Tensor) -> Tensor:
    """A may be narrower than B in trailing dimensions; A_0 is ignored."""
    length = b.shape[1]
    a, b = _chunks(a), _chunks(b)
    a[:, 0, 0] = 0
    factor, end = a[:, :, 0], b[:, :, 0]
    for j in range(1, a.shape[2]):
        factor, end = factor * a[:, :, j], a[:, :, j] * end + b[:, :, j]
    carry = [torch.zeros_like(end[:, 0])]
    for k in range(end.shape[1] - 1):
        carry.append(factor[:, k] * carry[-1] + end[:, k])
    h, state = torch.empty_like(b), torch.stack(carry, dim=1)
    for j in range(b.shape[2]):
        state = a[:, :, j] * state + b[:, :, j]
        h[:, :, j] = state
    return h.flatten(1, 2)[:, :length]


def _leading_chunks(a: Tensor, b: Tensor, eta: Tensor) -> Tensor:
    """A site maps L to (0 L + 1) / (-p L + alpha), alpha = a - i eta: a chunk is a product of such maps."""
    length = a.shape[1]
    p = b * b
    p[:, 0] = 0
    alpha, p, eta = _chunks(torch.complex(a, -eta), 0), _chunks(p), _chunks(eta, 1)
    product = _product(alpha, p)
    carry = [torch.zeros_like(alpha[:, 0, 0])]
    for k in range(alpha.shape[1] - 1):
        upper_left, upper_right, lower_left, lower_right = (entry[:, k] for entry in product)
        left = (upper_left * carry[-1] + upper_right) / (lower_left * carry[-1] + lower_right)
        # Exactly, Im L > 0; where it is below the rounding of |L| the quotient may miss that.
        carry.append(torch.complex(left.real, left.imag.clamp_min(0)))
    result, state = torch.empty_like(alpha), torch.stack(carry, dim=1)
    for j in range(alpha.shape[2]):
        r = alpha[:, :, j].real - p[:, :, j] * state.real
        state = _element(r, eta[:, :, j] + p[:, :, j] * state.imag)
        result[:, :, j] = state
    return result.flatten(1, 2)[:, :length]


def _product(alpha: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entries of [[0, 1], [-p_j, alpha_j]] ... [[0, 1], [-p_0, alpha_0]] of every chunk, up to a factor.

    Only quotients of the entries matter, so they are divided by the largest at every step: they would
    overflow after about a hundred sites in complex64.
    """
    one = torch.ones_like(alpha[:, :, 0])
    upper_left, upper_right = torch.zeros_like(one), one
    lower_left, lower_right = (-p[:, :, 0]).to(alpha.dtype), alpha[:, :, 0]
    for j in range(1, alpha.shape[2]):
        below_left = alpha[:, :, j] * lower_left - p[:, :, j] * upper_left
        below_right = alpha[:, :, j] * lower_right - p[:, :, j] * upper_right
        entries = (lower_left, lower_right, below_left, below_right)
        size = torch.stack([entry.abs() for entry in entries]).amax(0)
        upper_left, upper_right, lower_left, lower_right = (entry / size for entry in entries)
    return upper_left, upper_right, lower_left, lower_right


def _chunks(t: Tensor, fill: float = 0) -> Tensor:
    """(B, N, ...) to (B, chunks, sites, ...), filled up at the end."""
    sites = math.isqrt(t.shape[1] - 1) + 1
    chunks = -(-t.shape[1] // sites)
    missing = t.new_full((t.shape[0], chunks * sites - t.shape[1], *t.shape[2:]), fill)
    return torch.cat([t, missing], dim=1).unflatten(1, (chunks, sites))


TORCH = {
    "reference": Recurrences(_linear_loop, _leading_loop),
    "chunked": Recurrences(_linear_chunks, _leading_chunks),
}
"""The backends that are plain torch."""
