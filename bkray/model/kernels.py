"""Compiled CPU kernels (numba), one fused pass each; `backends.run_kernel` calls them.

Every kernel takes `first, last, chunk` and arrays (B, N, C): item t is batch row t // chunks, channels (t %
chunks) * chunk onwards. The inner loops run over contiguous channels, write few rows each and keep the
state of a recursion in small local arrays: the compiler can check such loops for aliasing, and vectorises
them.
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
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        for i in range(length):
            total.fill(0)
            for k in range(max(0, width_k - 1 - i), width_k):
                tap, xi = taps[0, k, part], x[batch, i - width_k + 1 + k, part]
                for c in range(width):
                    total[c] += tap[c] * xi[c]
            yi = y[batch, i, part]
            for c in range(width):
                yi[c] = total[c]


@_compile
def convolution_backward(
    first: int, last: int, chunk: int, g: Array, x: Array, taps: Array, d_x: Array, d_taps: Array
) -> None:
    """Adjoint of `convolution_forward`; d_taps (B, K, C), which the caller sums over B in a fixed order."""
    length, channels = x.shape[1:]
    chunks, width_k = -(-channels // chunk), taps.shape[1]
    total, taken = np.empty(chunk, x.dtype), np.empty((width_k, chunk), x.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        taken.fill(0)
        for i in range(length):
            total.fill(0)
            xi, dxi = x[batch, i, part], d_x[batch, i, part]
            for k in range(max(0, width_k - length + i), width_k):
                tap, gi, sums = taps[0, k, part], g[batch, i + width_k - 1 - k, part], taken[k]
                for c in range(width):
                    total[c] += tap[c] * gi[c]
                for c in range(width):
                    sums[c] += xi[c] * gi[c]
            for c in range(width):
                dxi[c] = total[c]
        for k in range(width_k):
            for c in range(width):
                d_taps[batch, k, start + c] = taken[k, c]


@_compile
def resolvent_forward(
    first: int, last: int, chunk: int, a: Array, p: Array, eta: Array, l_re: Array, l_im: Array
) -> None:
    """L_i = (r_i + i D_i) / (r_i^2 + D_i^2), D_i = eta_i + p_i Im L_{i-1}, r_i = a_i - p_i Re L_{i-1}."""
    length, channels = a.shape[1:]
    chunks = -(-channels // chunk)
    re, im = np.empty(chunk, a.dtype), np.empty(chunk, a.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        width = part.stop - start
        re.fill(0)
        im.fill(0)
        for i in range(length):
            ai, pi, ei = a[batch, i, part], p[batch, i, part], eta[batch, i, part]
            re_i, im_i = l_re[batch, i, part], l_im[batch, i, part]
            for c in range(width):
                r = ai[c] - pi[c] * re[c]
                d = ei[c] + pi[c] * im[c]
                square = r * r + d * d
                re[c] = r / square
                im[c] = d / square
            for c in range(width):
                re_i[c] = re[c]
            for c in range(width):
                im_i[c] = im[c]


@_compile
def resolvent_backward(
    first: int,
    last: int,
    chunk: int,
    g_re: Array,
    g_im: Array,
    p: Array,
    l_re: Array,
    l_im: Array,
    d_a: Array,
    d_p: Array,
    d_eta: Array,
) -> None:
    """da = -Re Q, d eta = -Im Q, dp_i = Re(Q_i L_{i-1}), Q_i = L_i^2 (conj g_i + p_{i+1} Q_{i+1})."""
    length, channels = p.shape[1:]
    chunks = -(-channels // chunk)
    re, im = np.empty(chunk, p.dtype), np.empty(chunk, p.dtype)
    for item in range(first, last):
        batch, start = item // chunks, item % chunks * chunk
        part = slice(start, min(start + chunk, channels))
        re.fill(0)
        im.fill(0)
        for i in range(length - 1, -1, -1):
            for c in range(part.stop - start):
                j = start + c
                up_re, up_im = g_re[batch, i, j] + re[c], -g_im[batch, i, j] + im[c]
                x, y = l_re[batch, i, j], l_im[batch, i, j]
                square_re, square_im = (x - y) * (x + y), 2 * x * y
                q_re = square_re * up_re - square_im * up_im
                q_im = square_re * up_im + square_im * up_re
                d_a[batch, i, j] = -q_re
                d_eta[batch, i, j] = -q_im
                d_p[batch, i, j] = q_re * l_re[batch, i - 1, j] - q_im * l_im[batch, i - 1, j] if i > 0 else 0
                re[c] = p[batch, i, j] * q_re
                im[c] = p[batch, i, j] * q_im
