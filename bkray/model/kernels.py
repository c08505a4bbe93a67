"""Compiled CPU kernels (numba), one fused pass each; `backends.run_kernel` calls them.

Every kernel takes `first, last, chunk` and arrays (B, N, C): item t is batch row t // chunks, channels (t %
chunks) * chunk onwards. The inner loops run over contiguous channels, write few rows each and keep the
state of a recursion in small local arrays: the compiler can check such loops for aliasing, and vectorises
them. Indices of channels are unsigned, because a signed one may count from the end, which keeps a loop from
being vectorised; slices of rows would do as well, but each costs an atomic count of references.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

# Contraction to fused multiply-adds only: nothing is reassociated, so results do not depend on the length.
_compile = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_compile
def scan_forward(
    first: int,
    last: int,
    chunk: int,
    f: Array,
    cos: Array,
    sin: Array,
    x: Array,
    h_re: Array,
    h_im: Array,
    normalise: bool,
) -> None:
    """h_i = f_i exp(-i omega_i) h_{i-1} + c_i x_i, c_i = sqrt(1 - f_i^2) or, not normalised, 1; f_0 = 0."""
    length, channels = x.shape[1:]
    chunks = -(-channels // chunk)
    one = x.dtype.type(1)
    re, im, gain = np.empty(chunk, x.dtype), np.empty(chunk, x.dtype), np.ones(chunk, x.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        for c in range(width):
            re[c], im[c] = x[batch, 0, start + c], 0
            h_re[batch, 0, start + c], h_im[batch, 0, start + c] = re[c], 0
        for i in range(1, length):
            fi, ci, si, xi = f[batch, i, part], cos[batch, i, part], sin[batch, i, part], x[batch, i, part]
            re_i, im_i = h_re[batch, i, part], h_im[batch, i, part]
            if normalise:
                for c in range(width):
                    gain[c] = math.sqrt(one - fi[c] * fi[c])
            for c in range(width):
                turned = fi[c] * (ci[c] * re[c] + si[c] * im[c])
                im[c] = fi[c] * (ci[c] * im[c] - si[c] * re[c])
                re[c] = turned + gain[c] * xi[c]
            for c in range(width):
                re_i[c] = re[c]
            for c in range(width):
                im_i[c] = im[c]


@_compile
def scan_backward(  # noqa: PLR0912 - one short loop for each row that is written
    first: int,
    last: int,
    chunk: int,
    g_re: Array,
    g_im: Array,
    f: Array,
    cos: Array,
    sin: Array,
    x: Array,
    h_re: Array,
    h_im: Array,
    d_f: Array,
    d_cos: Array,
    d_sin: Array,
    d_x: Array,
    normalise: bool,
) -> None:
    """Adjoint of `scan_forward`, lambda_i = g_i + f_{i+1} exp(i omega_{i+1}) lambda_{i+1}."""
    length, channels = x.shape[1:]
    chunks = -(-channels // chunk)
    one = x.dtype.type(1)
    re, im = np.empty(chunk, x.dtype), np.empty(chunk, x.dtype)
    inner, cross, gain = np.empty(chunk, x.dtype), np.empty(chunk, x.dtype), np.ones(chunk, x.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        re.fill(0)
        im.fill(0)
        for i in range(length - 1, 0, -1):
            fi, ci, si, xi = f[batch, i, part], cos[batch, i, part], sin[batch, i, part], x[batch, i, part]
            gr, gi = g_re[batch, i, part], g_im[batch, i, part]
            hr, hi = h_re[batch, i - 1, part], h_im[batch, i - 1, part]
            df, dc, ds, dx = (
                d_f[batch, i, part],
                d_cos[batch, i, part],
                d_sin[batch, i, part],
                d_x[batch, i, part],
            )
            for c in range(width):
                re[c] += gr[c]
                im[c] += gi[c]
            if normalise:
                for c in range(width):
                    gain[c] = math.sqrt(one - fi[c] * fi[c])
            for c in range(width):
                inner[c] = re[c] * hr[c] + im[c] * hi[c]
            for c in range(width):
                cross[c] = re[c] * hi[c] - im[c] * hr[c]
            for c in range(width):
                dc[c] = fi[c] * inner[c]
            for c in range(width):
                ds[c] = fi[c] * cross[c]
            for c in range(width):
                dx[c] = gain[c] * re[c]
            for c in range(width):
                df[c] = ci[c] * inner[c] + si[c] * cross[c]
            if normalise:
                for c in range(width):
                    df[c] -= fi[c] * xi[c] * re[c] / gain[c]
            for c in range(width):
                turned = fi[c] * (ci[c] * re[c] - si[c] * im[c])
                im[c] = fi[c] * (si[c] * re[c] + ci[c] * im[c])
                re[c] = turned
        for c in range(start, start + width):
            d_x[batch, 0, c] = re[c - start] + g_re[batch, 0, c]
            d_f[batch, 0, c], d_cos[batch, 0, c], d_sin[batch, 0, c] = 0, 0, 0


@_compile
def convolution_forward(first: int, last: int, chunk: int, x: Array, taps: Array, y: Array) -> None:
    """y_i = sum_k taps_k x_{i-K+1+k}; taps (1, K, C), x counting as 0 before the first site."""
    length, channels = x.shape[1:]
    chunks, width_k = -(-channels // chunk), taps.shape[1]
    total = np.empty(chunk, x.dtype)
    for item in range(first, last):
        batch, start = item // chunks, np.uint64(item % chunks * chunk)
        width = np.uint64(min(chunk, channels - item % chunks * chunk))
        for i in range(length):
            total.fill(0)
            for k in range(max(0, width_k - 1 - i), width_k):
                for c in range(width):
                    total[c] += taps[0, k, start + c] * x[batch, i - width_k + 1 + k, start + c]
            for c in range(width):
                y[batch, i, start + c] = total[c]


@_compile
def convolution_backward(
    first: int, last: int, chunk: int, g: Array, x: Array, taps: Array, d_x: Array, d_taps: Array
) -> None:
    """Adjoint of `convolution_forward`; d_taps (B, K, C), which the caller sums over B in a fixed order."""
    length, channels = x.shape[1:]
    chunks, width_k = -(-channels // chunk), taps.shape[1]
    total, taken = np.empty(chunk, x.dtype), np.empty((width_k, chunk), x.dtype)
    for item in range(first, last):
        batch, start = item // chunks, np.uint64(item % chunks * chunk)
        width = np.uint64(min(chunk, channels - item % chunks * chunk))
        taken.fill(0)
        for i in range(length):
            total.fill(0)
            for k in range(max(0, width_k - length + i), width_k):
                for c in range(width):
                    total[c] += taps[0, k, start + c] * g[batch, i + width_k - 1 - k, start + c]
                for c in range(width):
                    taken[k, c] += x[batch, i, start + c] * g[batch, i + width_k - 1 - k, start + c]
            for c in range(width):
                d_x[batch, i, start + c] = total[c]
        for k in range(width_k):
            for c in range(width):
                d_taps[batch, k, start + c] = taken[k, c]


@_compile
def diagonal_forward(first: int, last: int, chunk: int, a: Array, b: Array, eta: Array, left: Array) -> None:
    """L_i = (r_i + i D_i) / (r_i^2 + D_i^2), D_i = eta_i + b_i^2 Im L_{i-1}, r_i = a_i - b_i^2 Re L_{i-1}.

    `left` (B, N, H, 2): real and imaginary parts.
    """
    length, channels = a.shape[1:]
    chunks = -(-channels // chunk)
    re, im, p = np.empty(chunk, a.dtype), np.empty(chunk, a.dtype), np.empty(chunk, a.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        re.fill(0)
        im.fill(0)
        p.fill(0)
        for i in range(length):
            ai, bi, ei, li = a[batch, i, part], b[batch, i, part], eta[batch, i, part], left[batch, i, part]
            if i > 0:
                for c in range(width):
                    p[c] = bi[c] * bi[c]
            for c in range(width):
                r = ai[c] - p[c] * re[c]
                d = ei[c] + p[c] * im[c]
                square = r * r + d * d
                re[c] = r / square
                im[c] = d / square
            for c in range(width):
                li[c, 0] = re[c]
                li[c, 1] = im[c]


@_compile
def diagonal_backward(
    first: int,
    last: int,
    chunk: int,
    b: Array,
    g: Array,
    left: Array,
    d_a: Array,
    d_b: Array,
    d_eta: Array,
) -> None:
    """da = -Re Q, d eta = -Im Q, db_i = 2 b_i Re(Q_i L_{i-1}), Q_i = L_i^2 (conj g_i + b_{i+1}^2 Q_{i+1})."""
    length, channels = b.shape[1:]
    chunks, two = -(-channels // chunk), b.dtype.type(2)
    re, im = np.empty(chunk, b.dtype), np.empty(chunk, b.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        re.fill(0)
        im.fill(0)
        for i in range(length - 1, -1, -1):
            gi, li, before = g[batch, i, part], left[batch, i, part], left[batch, max(i - 1, 0), part]
            bi, da, db, de = (
                b[batch, i, part],
                d_a[batch, i, part],
                d_b[batch, i, part],
                d_eta[batch, i, part],
            )
            for c in range(width):
                up_re, up_im = gi[c, 0] + re[c], im[c] - gi[c, 1]
                x, y = li[c, 0], li[c, 1]
                square_re, square_im = (x - y) * (x + y), two * x * y
                re[c] = square_re * up_re - square_im * up_im
                im[c] = square_re * up_im + square_im * up_re
            for c in range(width):
                da[c] = -re[c]
            for c in range(width):
                de[c] = -im[c]
            if i == 0:
                db.fill(0)
                continue
            for c in range(width):
                db[c] = two * bi[c] * (re[c] * before[c, 0] - im[c] * before[c, 1])
            for c in range(width):
                re[c] *= bi[c] * bi[c]
                im[c] *= bi[c] * bi[c]


@_compile
def mix_forward(
    first: int, last: int, chunk: int, a: Array, b: Array, eta: Array, x: Array, y: Array
) -> None:
    """y_i = u_i (c_i x_i - f_i y_{i-1}), L recomputed on the way; x (B, N, H, D), y (B, N, H, D, 2).

    One head an item (chunk is 1): the inner loops run over its D values.
    """
    length, heads = a.shape[1:]
    zero = a.dtype.type(0)
    for item in range(first, last):
        batch, h = item // heads, item % heads
        l_re, l_im = zero, zero
        for i in range(length):
            bi = b[batch, i, h] if i > 0 else zero
            d = eta[batch, i, h] + bi * bi * l_im
            r = a[batch, i, h] - bi * bi * l_re
            square = r * r + d * d
            c, f, size = math.sqrt(eta[batch, i, h] / d), bi * math.sqrt(l_im / d), math.sqrt(square)
            u_re, u_im, l_re, l_im = r / size, d / size, r / square, d / square
            xi, yi, before = x[batch, i, h], y[batch, i, h], y[batch, max(i - 1, 0), h]
            if i == 0:
                yi.fill(0)
            for k in range(len(xi)):
                s_re, s_im = c * xi[k] - f * before[k, 0], -f * before[k, 1]
                yi[k, 0] = u_re * s_re - u_im * s_im
                yi[k, 1] = u_re * s_im + u_im * s_re


@_compile
def mix_backward(
    first: int,
    last: int,
    chunk: int,
    b: Array,
    eta: Array,
    x: Array,
    g: Array,
    y: Array,
    left: Array,
    d_a: Array,
    d_b: Array,
    d_eta: Array,
    d_x: Array,
) -> None:
    """Adjoint of `mix_forward` and of L's recursion within, as `resolvent._mix_adjoint` writes it out."""
    length, heads, values = x.shape[1:]
    zero, two = x.dtype.type(0), x.dtype.type(2)
    up_re, up_im = np.empty(values, x.dtype), np.empty(values, x.dtype)
    for item in range(first, last):
        batch, h = item // heads, item % heads
        to_re, to_im = zero, zero  # what reaches L_i
        up_re.fill(0)
        up_im.fill(0)
        for i in range(length - 1, -1, -1):
            j = max(i - 1, 0)
            bi = b[batch, i, h] if i > 0 else zero
            l_re, l_im = left[batch, i, h, 0], left[batch, i, h, 1]
            before_re, before_im = left[batch, j, h, 0], left[batch, j, h, 1]
            d = eta[batch, i, h] + bi * bi * before_im
            root, c = math.sqrt(before_im / d), math.sqrt(eta[batch, i, h] / d)
            f, size = bi * root, math.hypot(l_re, l_im)
            u_re, u_im = l_re / size, l_im / size
            gi, yi, yj, xi, dx = (
                g[batch, i, h],
                y[batch, i, h],
                y[batch, j, h],
                x[batch, i, h],
                d_x[batch, i, h],
            )
            g_phi, g_c, g_f = zero, zero, zero
            for k in range(values):
                re, im = up_re[k] + gi[k, 0], up_im[k] + gi[k, 1]
                s_re, s_im = u_re * re + u_im * im, u_re * im - u_im * re
                g_phi += yi[k, 0] * im - yi[k, 1] * re
                g_c += s_re * xi[k]
                g_f -= yj[k, 0] * s_re + yj[k, 1] * s_im
                dx[k] = c * s_re
                up_re[k], up_im[k] = -f * s_re, -f * s_im
            square_re, square_im = (l_re - l_im) * (l_re + l_im), two * l_re * l_im
            d_r = -l_im * g_phi - (to_re * square_re + to_im * square_im)
            d_d = l_re * g_phi - (g_c * c + g_f * f) / (two * d) - (to_re * square_im - to_im * square_re)
            d_p = d_d * before_im - d_r * before_re
            d_a[batch, i, h], d_eta[batch, i, h] = d_r, d_d + g_c * c / (two * eta[batch, i, h])
            d_b[batch, i, h] = two * bi * d_p + g_f * root if i > 0 else zero
            to_re, to_im = -bi * bi * d_r, bi * bi * d_d
            if i > 0 and root > 0:
                to_im += g_f * bi / (two * root * d)


@_compile
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


@_compile
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


@_compile
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


@_compile
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
