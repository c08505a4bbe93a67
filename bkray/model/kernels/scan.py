"""The recurrence of spectral mixing and the short convolution."""

from __future__ import annotations

import math

import numpy as np

from bkray.model.kernels.compiling import Array, compiled


@compiled
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


@compiled
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


@compiled
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


@compiled
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
