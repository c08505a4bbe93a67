"""Every triton kernel against the reference, both ways, and causal to the bit.

Run by test_triton_kernels.py with TRITON_INTERPRET=1, and where there is a GPU by test_on_a_gpu.py there.
"""

import torch

from bkray.model import resolvent_diagonal, resolvent_mix, spectral_scan, triton_kernels


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


def agree(device, function, inputs, tolerance):
    """Outputs and gradients of the two backends."""
    results = []
    for backend in ("reference", "triton"):
        leaves = [t.to(device, copy=True).requires_grad_() for t in inputs]
        outputs = function(*leaves, backend=backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs.real, outputs.imag)
        loss = sum((k + 1) * out.sum() + out.square().sum() for k, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for expected, result in zip(*results, strict=True):
        assert (expected - result).norm() <= tolerance * expected.norm() + 1e-30, function


def causal(device, function, old, new, site):
    changed = [torch.cat([t[:, :site], u[:, site:]], dim=1) for t, u in zip(old, new, strict=True)]
    outputs = [function(*(t.to(device) for t in inputs), backend="triton") for inputs in (old, changed)]
    for before, after in zip(*(out if isinstance(out, tuple) else (out,) for out in outputs), strict=True):
        assert torch.equal(before[:, :site], after[:, :site]), function


def plain_scan(*inputs, backend):
    return spectral_scan(*inputs, normalise=False, backend=backend)


def in_wide_blocks(device):
    """As where there are enough programs to fill a GPU: 32 channels each, and here 3 more."""
    usual, triton_kernels._PROGRAMS = triton_kernels._PROGRAMS, 1
    try:
        agree(device, spectral_scan, gates(66, 35, torch.float32), 1e-4)
    finally:
        triton_kernels._PROGRAMS = usual


def main(device="cpu", lengths=(1, 33, 130)):
    """The scan takes 64 sites at a time, the others one."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        single = dtype == torch.float32
        for length in lengths if single else lengths[1:2]:
            a, b, eta = operator(length, 17, dtype)
            b[:, 0] = torch.nan if length == 33 else 1
            agree(device, resolvent_diagonal, (a, b, eta), tolerance)
            a, b, eta = operator(length, 2, dtype)
            b[:, 0] = torch.nan if length == 33 else 1
            values = torch.randn(2, length, 2, 3, dtype=dtype)
            agree(device, resolvent_mix, (a, b, eta, values), 10 * tolerance)
            channels = 17 if length == 33 else 3  # more than a block takes twice as long
            agree(device, spectral_scan, gates(length, channels, dtype), 10 * tolerance)
        agree(device, plain_scan, gates(33, 3, dtype), 10 * tolerance)
    in_wide_blocks(device)
    for site in (1, 33):
        old, new = operator(40, 2, torch.float32), operator(40, 2, torch.float32, seed=1)
        causal(device, resolvent_diagonal, old, new, site)
        mixed = [(*tensors, torch.randn(2, 40, 2, 3)) for tensors in (old, new)]
        causal(device, resolvent_mix, *mixed, site)
    for site in (1, 65):  # in the first tile and in the second
        old, new = gates(70, 3, torch.float32), gates(70, 3, torch.float32, seed=1)
        causal(device, spectral_scan, old, new, site)


if __name__ == "__main__":
    main()
