"""Run by test_triton_kernels.py with TRITON_INTERPRET=1: every kernel against the reference, both ways."""

import torch

from bkray.model import resolvent_diagonal, resolvent_mix, spectral_scan

LENGTHS = (1, 33)
SCAN_LENGTHS = (1, 33, 65)  # in chunks of 32 sites


def operator(length, heads, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, length, heads, generator=random, dtype=dtype) for _ in range(2))
    return a, b, 0.1 + torch.rand(2, length, heads, generator=random, dtype=dtype)


def gates(length, channels, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    f, omega = (torch.rand(2, length, channels, generator=random, dtype=dtype) for _ in range(2))
    return (
        0.999 * f,
        omega.cos(),
        omega.sin(),
        torch.randn(2, length, channels, generator=random, dtype=dtype),
    )


def agree(function, inputs, tolerance):
    """Outputs and gradients of the two backends."""
    results = []
    for backend in ("reference", "triton"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        outputs = function(*leaves, backend=backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs.real, outputs.imag)
        loss = sum((k + 1) * out.sum() + out.square().sum() for k, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for expected, result in zip(*results, strict=True):
        assert (expected - result).norm() <= tolerance * expected.norm() + 1e-30, function


def causal(function, old, new, site):
    changed = [torch.cat([t[:, :site], u[:, site:]], dim=1) for t, u in zip(old, new, strict=True)]
    outputs = [function(*inputs, backend="triton") for inputs in (old, changed)]
    for before, after in zip(*(out if isinstance(out, tuple) else (out,) for out in outputs), strict=True):
        assert torch.equal(before[:, :site], after[:, :site]), function


def plain_scan(*inputs, backend):
    return spectral_scan(*inputs, normalise=False, backend=backend)


def main():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        single = dtype == torch.float32
        for length in LENGTHS if single else (33,):
            a, b, eta = operator(length, 17, dtype)
            b[:, 0] = torch.nan if length == 33 else 1
            agree(resolvent_diagonal, (a, b, eta), tolerance)
            a, b, eta = operator(length, 2, dtype)
            b[:, 0] = torch.nan if length == 33 else 1
            agree(resolvent_mix, (a, b, eta, torch.randn(2, length, 2, 3, dtype=dtype)), 10 * tolerance)
        for length in SCAN_LENGTHS if single else (33,):
            channels = 17 if length == 33 else 3  # more than a block takes twice as long
            agree(spectral_scan, gates(length, channels, dtype), 10 * tolerance)
        agree(plain_scan, gates(33, 3, dtype), 10 * tolerance)
    for site in (1, 33):
        old, new = operator(40, 2, torch.float32), operator(40, 2, torch.float32, seed=1)
        causal(resolvent_diagonal, old, new, site)
        causal(resolvent_mix, (*old, torch.randn(2, 40, 2, 3)), (*new, torch.randn(2, 40, 2, 3)), site)
        causal(spectral_scan, gates(40, 3, torch.float32), gates(40, 3, torch.float32, seed=1), site)


if __name__ == "__main__":
    main()
