"""CUDA kernels (triton), one fused pass each; with TRITON_INTERPRET=1 they run on the CPU, slowly, for tests.

    scan       a program takes one batch row and BLOCK channels, SITES sites at a time: a scan within the
               tile, a carry from tile to tile
    diagonal   a program takes one batch row and BLOCK heads, a site at a time
    mix        a program takes one batch row and one head with all its values, a site at a time

Complex tensors come as pointers to pairs (real, imaginary). Sites are read in order and what is written at a
site is computed from those up to it (adjoints: from it on), in an order fixed by the shapes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor

BLOCK = 16
SITES, STAGES, WARPS = 64, 3, 4
"""Sites of the scan's tile, tiles on their way at a time, and warps, as an H200 likes them."""
_PROGRAMS = 256
"""With so many programs or more, two for each multiprocessor, the scan takes twice the channels in each."""


@triton.jit
def _compose(a_re, a_im, b_re, b_im, c_re, c_im, d_re, d_im):
    """h -> c (a h + b) + d as factor and offset."""
    return (
        c_re * a_re - c_im * a_im,
        c_re * a_im + c_im * a_re,
        c_re * b_re - c_im * b_im + d_re,
        c_re * b_im + c_im * b_re + d_im,
    )


@triton.jit
def scan_forward_kernel(
    f_at,
    cos_at,
    sin_at,
    x_at,
    h_re_at,
    h_im_at,
    length,
    channels,
    NORMALISE: tl.constexpr,
    SITES: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """h_i = f_i exp(-i omega_i) h_{i-1} + c_i x_i, c_i = sqrt(1 - f_i^2) or, not normalised, 1; f_0 = 0."""
    sites = tl.arange(0, SITES)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = tl.program_id(0).to(tl.int64) * length * channels
    carry_re = tl.zeros((1, BLOCK), x_at.dtype.element_ty)
    carry_im = carry_re
    for start in tl.range(0, length, SITES, num_stages=STAGES):
        i = start + sites
        inside = (i < length) & (channel < channels)
        at = row + i * channels + channel
        f = tl.load(f_at + at, inside & (i > 0), 0.0)
        cos, sin = tl.load(cos_at + at, inside, 0.0), tl.load(sin_at + at, inside, 0.0)
        x = tl.load(x_at + at, inside, 0.0)
        drive = tl.sqrt(1 - f * f) * x if NORMALISE else x
        a_re, a_im, b_re, b_im = tl.associative_scan(
            (f * cos, -f * sin, drive, tl.zeros_like(drive)), 0, _compose
        )
        h_re = a_re * carry_re - a_im * carry_im + b_re
        h_im = a_re * carry_im + a_im * carry_re + b_im
        tl.store(h_re_at + at, h_re, inside)
        tl.store(h_im_at + at, h_im, inside)
        carry_re = tl.sum(tl.where(sites == SITES - 1, h_re, 0.0), 0)[None, :]
        carry_im = tl.sum(tl.where(sites == SITES - 1, h_im, 0.0), 0)[None, :]


@triton.jit
def scan_backward_kernel(
    g_re_at,
    g_im_at,
    f_at,
    cos_at,
    sin_at,
    x_at,
    h_re_at,
    h_im_at,
    d_f_at,
    d_cos_at,
    d_sin_at,
    d_x_at,
    length,
    channels,
    NORMALISE: tl.constexpr,
    SITES: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Adjoint of the scan: lambda_i = g_i + f_{i+1} exp(i omega_{i+1}) lambda_{i+1}, last tile first."""
    sites = tl.arange(0, SITES)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = tl.program_id(0).to(tl.int64) * length * channels
    carry_re = tl.zeros((1, BLOCK), x_at.dtype.element_ty)
    carry_im = carry_re
    tiles = tl.cdiv(length, SITES)
    for done in tl.range(0, tiles, num_stages=STAGES):
        i = (tiles - 1 - done) * SITES + sites
        inside = (i < length) & (channel < channels)
        after, before = inside & (i + 1 < length), inside & (i > 0)
        at = row + i * channels + channel
        next_f = tl.load(f_at + at + channels, after, 0.0)
        turn_re = next_f * tl.load(cos_at + at + channels, after, 0.0)
        turn_im = next_f * tl.load(sin_at + at + channels, after, 0.0)
        g_re, g_im = tl.load(g_re_at + at, inside, 0.0), tl.load(g_im_at + at, inside, 0.0)
        a_re, a_im, b_re, b_im = tl.associative_scan(
            (turn_re, turn_im, g_re, g_im), 0, _compose, reverse=True
        )
        re = a_re * carry_re - a_im * carry_im + b_re
        im = a_re * carry_im + a_im * carry_re + b_im
        carry_re = tl.sum(tl.where(sites == 0, re, 0.0), 0)[None, :]
        carry_im = tl.sum(tl.where(sites == 0, im, 0.0), 0)[None, :]
        h_re, h_im = (
            tl.load(h_re_at + at - channels, before, 0.0),
            tl.load(h_im_at + at - channels, before, 0.0),
        )
        f = tl.load(f_at + at, before, 0.0)
        cos, sin = tl.load(cos_at + at, inside, 0.0), tl.load(sin_at + at, inside, 0.0)
        inner, cross = re * h_re + im * h_im, re * h_im - im * h_re
        d_f, d_x = cos * inner + sin * cross, re
        if NORMALISE:
            gain = tl.sqrt(1 - f * f)
            d_f -= f * tl.load(x_at + at, inside, 0.0) * re / gain
            d_x = gain * re
        tl.store(d_f_at + at, d_f, inside)
        tl.store(d_cos_at + at, f * inner, inside)
        tl.store(d_sin_at + at, f * cross, inside)
        tl.store(d_x_at + at, d_x, inside)


@triton.jit
def diagonal_forward_kernel(a_at, b_at, eta_at, left_at, length, heads, BLOCK: tl.constexpr):
    """L_i = (r_i + i D_i) / (r_i^2 + D_i^2), D_i = eta_i + b_i^2 Im L_{i-1}, r_i = a_i - b_i^2 Re L_{i-1}."""
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = head < heads
    at = tl.program_id(0).to(tl.int64) * length * heads + head
    re = tl.zeros((BLOCK,), a_at.dtype.element_ty)
    im = re
    for i in range(length):
        b = tl.load(b_at + at, inside & (i > 0), 0.0)
        r = tl.load(a_at + at, inside, 0.0) - b * b * re
        d = tl.load(eta_at + at, inside, 1.0) + b * b * im
        square = r * r + d * d
        re, im = r / square, d / square
        tl.store(left_at + 2 * at, re, inside)
        tl.store(left_at + 2 * at + 1, im, inside)
        at += heads


@triton.jit
def diagonal_backward_kernel(
    g_at, b_at, left_at, d_a_at, d_b_at, d_eta_at, length, heads, BLOCK: tl.constexpr
):
    """da = -Re Q, d eta = -Im Q, db_i = 2 b_i Re(Q_i L_{i-1}), Q_i = L_i^2 (conj g_i + b_{i+1}^2 Q_{i+1})."""
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = head < heads
    at = (tl.program_id(0).to(tl.int64) * length + length - 1) * heads + head
    re = tl.zeros((BLOCK,), b_at.dtype.element_ty)
    im = re
    for step in range(length):
        before = head < tl.where(step < length - 1, heads, 0)
        b = tl.load(b_at + at, before, 0.0)
        x, y = tl.load(left_at + 2 * at, inside, 0.0), tl.load(left_at + 2 * at + 1, inside, 0.0)
        re += tl.load(g_at + 2 * at, inside, 0.0)
        im -= tl.load(g_at + 2 * at + 1, inside, 0.0)
        square_re, square_im = (x - y) * (x + y), 2 * x * y
        re, im = square_re * re - square_im * im, square_re * im + square_im * re
        x = tl.load(left_at + 2 * (at - heads), before, 0.0)
        y = tl.load(left_at + 2 * (at - heads) + 1, before, 0.0)
        tl.store(d_a_at + at, -re, inside)
        tl.store(d_eta_at + at, -im, inside)
        tl.store(d_b_at + at, 2 * b * (re * x - im * y), inside)
        re, im = b * b * re, b * b * im
        at -= heads


@triton.jit
def mix_forward_kernel(a_at, b_at, eta_at, x_at, y_at, length, heads, values, VALUES: tl.constexpr):
    """y_i = u_i (c_i x_i - f_i y_{i-1}), L recomputed on the way."""
    value = tl.arange(0, VALUES)
    inside = value < values
    at = tl.program_id(0).to(tl.int64) * length * heads + tl.program_id(1)
    y_re = tl.zeros((VALUES,), x_at.dtype.element_ty)
    y_im = y_re
    l_re = tl.sum(y_re, 0)  # a scalar 0 of the tensors' type
    l_im = l_re
    for i in range(length):
        b, eta = tl.where(i > 0, tl.load(b_at + at), 0.0), tl.load(eta_at + at)
        r, d = tl.load(a_at + at) - b * b * l_re, eta + b * b * l_im
        square = r * r + d * d
        c, f, size = tl.sqrt(eta / d), b * tl.sqrt(l_im / d), tl.sqrt(square)
        s_re = c * tl.load(x_at + at * values + value, inside, 0.0) - f * y_re
        s_im = -f * y_im
        y_re, y_im = (r * s_re - d * s_im) / size, (r * s_im + d * s_re) / size
        l_re, l_im = r / square, d / square
        tl.store(y_at + 2 * (at * values + value), y_re, inside)
        tl.store(y_at + 2 * (at * values + value) + 1, y_im, inside)
        at += heads


@triton.jit
def mix_backward_kernel(
    g_at,
    b_at,
    eta_at,
    x_at,
    y_at,
    left_at,
    d_a_at,
    d_b_at,
    d_eta_at,
    d_x_at,
    length,
    heads,
    values,
    VALUES: tl.constexpr,
):
    """Adjoint of the mixing and of L's recursion within, as `resolvent._mix_adjoint` writes it out."""
    value = tl.arange(0, VALUES)
    inside = value < values
    at = (tl.program_id(0).to(tl.int64) * length + length - 1) * heads + tl.program_id(1)
    up_re = tl.zeros((VALUES,), x_at.dtype.element_ty)
    up_im = up_re
    to_re = tl.sum(up_re, 0)  # what reaches L_i
    to_im = to_re
    for step in range(length):
        first = step == length - 1
        last = tl.where(first, at, at - heads)  # at the first site b is 0, whatever is read there
        b, eta = tl.where(first, 0.0, tl.load(b_at + at)), tl.load(eta_at + at)
        l_re, l_im = tl.load(left_at + 2 * at), tl.load(left_at + 2 * at + 1)
        last_re, last_im = tl.load(left_at + 2 * last), tl.load(left_at + 2 * last + 1)
        d = eta + b * b * last_im
        root, c, size = tl.sqrt(last_im / d), tl.sqrt(eta / d), tl.sqrt(l_re * l_re + l_im * l_im)
        f, u_re, u_im = b * root, l_re / size, l_im / size
        here, there = at * values + value, last * values + value
        up_re += tl.load(g_at + 2 * here, inside, 0.0)
        up_im += tl.load(g_at + 2 * here + 1, inside, 0.0)
        s_re, s_im = u_re * up_re + u_im * up_im, u_re * up_im - u_im * up_re
        y_re, y_im = tl.load(y_at + 2 * here, inside, 0.0), tl.load(y_at + 2 * here + 1, inside, 0.0)
        g_phi = tl.sum(y_re * up_im - y_im * up_re, 0)
        g_c = tl.sum(s_re * tl.load(x_at + here, inside, 0.0), 0)
        y_re = tl.load(y_at + 2 * there, inside, 0.0)
        y_im = tl.load(y_at + 2 * there + 1, inside, 0.0)
        g_f = -tl.sum(y_re * s_re + y_im * s_im, 0)
        tl.store(d_x_at + here, c * s_re, inside)
        up_re, up_im = -f * s_re, -f * s_im
        square_re, square_im = (l_re - l_im) * (l_re + l_im), 2 * l_re * l_im
        d_r = -l_im * g_phi - (to_re * square_re + to_im * square_im)
        d_d = l_re * g_phi - (g_c * c + g_f * f) / (2 * d) - (to_re * square_im - to_im * square_re)
        tl.store(d_a_at + at, d_r)
        tl.store(d_eta_at + at, d_d + g_c * c / (2 * eta))
        d_b = 2 * b * (d_d * last_im - d_r * last_re) + g_f * root
        tl.store(d_b_at + at, tl.where(first, 0.0, d_b))
        through_f = tl.where(root > 0, g_f * b / (2 * tl.where(root > 0, root, 1.0) * d), 0.0)
        to_re, to_im = -b * b * d_r, b * b * d_d + through_f
        at -= heads


def scan_forward(
    f: Tensor, cos: Tensor, sin: Tensor, x: Tensor, h_re: Tensor, h_im: Tensor, normalise: bool
) -> None:
    _launch_scan(scan_forward_kernel, x, (f, cos, sin, x, h_re, h_im), normalise)


def scan_backward(
    g_re: Tensor,
    g_im: Tensor,
    f: Tensor,
    cos: Tensor,
    sin: Tensor,
    x: Tensor,
    h_re: Tensor,
    h_im: Tensor,
    d_f: Tensor,
    d_cos: Tensor,
    d_sin: Tensor,
    d_x: Tensor,
    normalise: bool,
) -> None:
    tensors = (g_re, g_im, f, cos, sin, x, h_re, h_im, d_f, d_cos, d_sin, d_x)
    _launch_scan(scan_backward_kernel, x, tensors, normalise)


def _launch_scan(kernel: triton.JITFunction, x: Tensor, tensors: tuple[Tensor, ...], normalise: bool) -> None:
    batch, length, channels = x.shape
    block = 2 * BLOCK if batch * triton.cdiv(channels, 2 * BLOCK) >= _PROGRAMS else BLOCK
    kernel[(batch, triton.cdiv(channels, block))](
        *tensors,
        length,
        channels,
        NORMALISE=normalise,
        SITES=SITES,
        BLOCK=block,
        STAGES=STAGES,
        num_warps=WARPS,
    )


def diagonal_forward(a: Tensor, b: Tensor, eta: Tensor, left: Tensor) -> None:
    batch, length, heads = a.shape
    grid = (batch, triton.cdiv(heads, BLOCK))
    diagonal_forward_kernel[grid](
        a, b, eta, torch.view_as_real(left), length, heads, BLOCK=BLOCK, num_warps=1
    )


def diagonal_backward(g: Tensor, b: Tensor, left: Tensor, d_a: Tensor, d_b: Tensor, d_eta: Tensor) -> None:
    batch, length, heads = b.shape
    grid = (batch, triton.cdiv(heads, BLOCK))
    g, left = torch.view_as_real(g), torch.view_as_real(left)
    diagonal_backward_kernel[grid](g, b, left, d_a, d_b, d_eta, length, heads, BLOCK=BLOCK, num_warps=1)


def mix_forward(a: Tensor, b: Tensor, eta: Tensor, x: Tensor, y: Tensor) -> None:
    batch, length, heads, values = x.shape
    width = triton.next_power_of_2(values)
    mix_forward_kernel[(batch, heads)](
        a, b, eta, x, torch.view_as_real(y), length, heads, values, VALUES=width, num_warps=1
    )


def mix_backward(
    g: Tensor,
    b: Tensor,
    eta: Tensor,
    x: Tensor,
    y: Tensor,
    left: Tensor,
    d_a: Tensor,
    d_b: Tensor,
    d_eta: Tensor,
    d_x: Tensor,
) -> None:
    batch, length, heads, values = x.shape
    width = triton.next_power_of_2(values)
    g, y, left = (torch.view_as_real(t) for t in (g, y, left))
    tensors = (g, b, eta, x, y, left, d_a, d_b, d_eta, d_x)
    mix_backward_kernel[(batch, heads)](*tensors, length, heads, values, VALUES=width, num_warps=1)
