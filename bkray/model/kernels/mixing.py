"""Gates, phases, convolution and recurrence of a mixing layer in one pass."""

from __future__ import annotations

import math

import numpy as np

from bkray.model.kernels.compiling import Array, compiled


@compiled
def mixing_forward(
    first: int,
    last: int,
    chunk: int,
    z: Array,
    gate: Array,
    head: Array,
    tangent: Array,
    psi_cos: Array,
    psi_sin: Array,
    margin: float,
    y: Array,
    h_re: Array,
    h_im: Array,
) -> None:
    """What `mixing.spectral_mixing` says; chunks hold whole heads.

    On entry h_re holds sigmoid(forget) and y sigmoid(gate): no other array of their size is needed.
    """
    length, channels = z.shape[1:]
    chunks, per = -(-channels // chunk), np.uint64(channels // head.shape[2])
    one, two, least = z.dtype.type(1), z.dtype.type(2), z.dtype.type(margin)
    re, im, t = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    f, gain = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    for item in range(first, last):
        batch, start = item // chunks, np.uint64(item % chunks * chunk)
        width = np.uint64(min(chunk, channels - item % chunks * chunk))
        re.fill(0)
        im.fill(0)
        for i in range(length):
            for c in range(width):
                kept = min(max(h_re[batch, i, start + c], least), one - least) if i > 0 else one - one
                f[c] = math.sqrt(kept)
                gain[c] = math.sqrt(one - kept)
            for h in range(width // per):
                value = head[batch, i, start // per + h]
                for c in range(h * per, h * per + per):
                    t[c] = value * tangent[start + c]
            for c in range(width):
                inverse = one / (one + t[c] * t[c])
                cos, sin = two * inverse - one, two * t[c] * inverse
                turned = f[c] * (cos * re[c] + sin * im[c])
                im[c] = f[c] * (cos * im[c] - sin * re[c])
                re[c] = turned + gain[c] * z[batch, i, start + c]
            for c in range(width):
                h_re[batch, i, start + c] = re[c]
            for c in range(width):
                h_im[batch, i, start + c] = im[c]
            for c in range(width):
                y[batch, i, start + c] *= (psi_cos[start + c] * re[c] - psi_sin[start + c] * im[c]) * gate[
                    batch, i, start + c
                ]


@compiled
def mixing_backward(  # noqa: PLR0912 - one short loop for each row that is written
    first: int,
    last: int,
    chunk: int,
    z: Array,
    g: Array,
    gate: Array,
    head: Array,
    tangent: Array,
    psi_cos: Array,
    psi_sin: Array,
    margin: float,
    h_re: Array,
    h_im: Array,
    d_z: Array,
    d_forget: Array,
    d_gate: Array,
    d_head: Array,
    d_tangent: Array,
    d_psi: Array,
) -> None:
    """Adjoint of `mixing_forward`; d_tangent and d_psi (B, C), which the caller sums over B in a fixed order.

    On entry d_forget holds sigmoid(forget) and d_gate sigmoid(gate).
    """
    length, channels = z.shape[1:]
    chunks, per = -(-channels // chunk), np.uint64(channels // head.shape[2])
    one, two, half, least = z.dtype.type(1), z.dtype.type(2), z.dtype.type(0.5), z.dtype.type(margin)
    re, im, t = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    f, gain, cos = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    inner, cross, sin = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    up, to_rate, to_psi = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    for item in range(first, last):
        batch, start = item // chunks, np.uint64(item % chunks * chunk)
        width = np.uint64(min(chunk, channels - item % chunks * chunk))
        for total in (re, im, to_rate, to_psi):
            total.fill(0)
        for i in range(length - 1, -1, -1):
            j = max(i - 1, 0)
            for c in range(width):
                up[c] = g[batch, i, start + c] * d_gate[batch, i, start + c] * gate[batch, i, start + c]
            for c in range(width):  # SiLU' = s + x s (1 - s)
                seen = (
                    psi_cos[start + c] * h_re[batch, i, start + c]
                    - psi_sin[start + c] * h_im[batch, i, start + c]
                )
                d_gate[batch, i, start + c] = (
                    g[batch, i, start + c]
                    * seen
                    * d_gate[batch, i, start + c]
                    * (one + gate[batch, i, start + c] * (one - d_gate[batch, i, start + c]))
                )
            for c in range(width):
                re[c] += psi_cos[start + c] * up[c]
                im[c] -= psi_sin[start + c] * up[c]
            for c in range(width):
                to_psi[c] -= up[c] * (
                    psi_sin[start + c] * h_re[batch, i, start + c]
                    + psi_cos[start + c] * h_im[batch, i, start + c]
                )
            for c in range(width):
                kept = min(max(d_forget[batch, i, start + c], least), one - least) if i > 0 else one - one
                f[c] = math.sqrt(kept)
                gain[c] = math.sqrt(one - kept)
            for h in range(width // per):
                value = head[batch, i, start // per + h]
                for c in range(h * per, h * per + per):
                    t[c] = value * tangent[start + c]
            for c in range(width):
                inverse = one / (one + t[c] * t[c])
                cos[c] = two * inverse - one
                sin[c] = two * t[c] * inverse
            for c in range(width):
                inner[c] = re[c] * h_re[batch, j, start + c] + im[c] * h_im[batch, j, start + c]
                cross[c] = re[c] * h_im[batch, j, start + c] - im[c] * h_re[batch, j, start + c]
            for c in range(width):
                d_z[batch, i, start + c] = gain[c] * re[c]
            for c in range(width):
                to_f = (
                    gain[c] * (cos[c] * inner[c] + sin[c] * cross[c]) - f[c] * z[batch, i, start + c] * re[c]
                )
                d_forget[batch, i, start + c] = half * f[c] * gain[c] * to_f
            for c in range(width):  # d omega / dT = 2 / (1 + T^2) = 1 + cos omega
                t[c] = f[c] * (cos[c] * cross[c] - sin[c] * inner[c]) * (one + cos[c])
            for h in range(width // per):
                value, total = head[batch, i, start // per + h], one - one
                for c in range(h * per, h * per + per):
                    to_rate[c] += value * t[c]
                for c in range(h * per, h * per + per):
                    total += tangent[start + c] * t[c]
                d_head[batch, i, start // per + h] = total
            for c in range(width):
                turned = f[c] * (cos[c] * re[c] - sin[c] * im[c])
                im[c] = f[c] * (sin[c] * re[c] + cos[c] * im[c])
                re[c] = turned
        for c in range(width):
            d_tangent[batch, start + c], d_psi[batch, start + c] = to_rate[c], to_psi[c]


@compiled
def real_mixing_forward(
    first: int, last: int, chunk: int, z: Array, gate: Array, margin: float, y: Array, h: Array
) -> None:
    """`mixing_forward` without phases; on entry h holds sigmoid(forget) and y sigmoid(gate)."""
    length, channels = z.shape[1:]
    chunks = -(-channels // chunk)
    one, least = z.dtype.type(1), z.dtype.type(margin)
    state = np.empty(chunk, z.dtype)
    for item in range(first, last):
        batch, start = item // chunks, np.uint64(item % chunks * chunk)
        width = np.uint64(min(chunk, channels - item % chunks * chunk))
        state.fill(0)
        for i in range(length):
            for c in range(width):
                kept = min(max(h[batch, i, start + c], least), one - least) if i > 0 else one - one
                state[c] = math.sqrt(kept) * state[c] + math.sqrt(one - kept) * z[batch, i, start + c]
            for c in range(width):
                h[batch, i, start + c] = state[c]
            for c in range(width):
                y[batch, i, start + c] *= state[c] * gate[batch, i, start + c]


@compiled
def real_mixing_backward(
    first: int,
    last: int,
    chunk: int,
    z: Array,
    g: Array,
    gate: Array,
    margin: float,
    h: Array,
    d_z: Array,
    d_forget: Array,
    d_gate: Array,
) -> None:
    """Adjoint of `real_mixing_forward`; on entry d_forget holds sigmoid(forget) and d_gate sigmoid(gate)."""
    length, channels = z.shape[1:]
    chunks = -(-channels // chunk)
    one, half, least = z.dtype.type(1), z.dtype.type(0.5), z.dtype.type(margin)
    reached, f, gain = np.empty(chunk, z.dtype), np.empty(chunk, z.dtype), np.empty(chunk, z.dtype)
    for item in range(first, last):
        batch, start = item // chunks, np.uint64(item % chunks * chunk)
        width = np.uint64(min(chunk, channels - item % chunks * chunk))
        reached.fill(0)
        for i in range(length - 1, -1, -1):
            for c in range(width):
                reached[c] += g[batch, i, start + c] * d_gate[batch, i, start + c] * gate[batch, i, start + c]
            for c in range(width):  # SiLU' = s + x s (1 - s)
                d_gate[batch, i, start + c] = (
                    g[batch, i, start + c]
                    * h[batch, i, start + c]
                    * d_gate[batch, i, start + c]
                    * (one + gate[batch, i, start + c] * (one - d_gate[batch, i, start + c]))
                )
            for c in range(width):
                kept = min(max(d_forget[batch, i, start + c], least), one - least) if i > 0 else one - one
                f[c] = math.sqrt(kept)
                gain[c] = math.sqrt(one - kept)
            for c in range(width):
                d_z[batch, i, start + c] = gain[c] * reached[c]
            for c in range(width):
                to_f = gain[c] * h[batch, max(i - 1, 0), start + c] - f[c] * z[batch, i, start + c]
                d_forget[batch, i, start + c] = half * f[c] * gain[c] * to_f * reached[c]
            for c in range(width):
                reached[c] *= f[c]
