"""The resolvent of a tridiagonal operator: its diagonal, and mixing with it."""

from __future__ import annotations

import math

import numpy as np

from bkray.model.kernels.compiling import Array, compiled


@compiled
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


@compiled
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


@compiled
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


@compiled
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
