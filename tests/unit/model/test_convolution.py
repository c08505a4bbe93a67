"""The compiled causal convolution against torch's."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bkray.model.convolution import causal_convolution


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 11])
def test_gradients(length, taps, backend):
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 1, taps, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, kernel: causal_convolution(x, kernel, backend=backend), (x, kernel)
    )


def test_equals_the_sum_over_past_sites():
    x, kernel = torch.randn(3, 20, 300, dtype=torch.float64), torch.randn(300, 1, 4, dtype=torch.float64)
    expected = sum(F.pad(x, (0, 0, lag, 0))[:, :20] * kernel[:, 0, 3 - lag] for lag in range(4))
    for backend in ("reference", "numba"):
        torch.testing.assert_close(causal_convolution(x, kernel, backend=backend), expected)


def test_gradient_of_the_taps_has_the_same_bits_on_any_number_of_threads():
    x, kernel = torch.randn(5, 64, 600), torch.randn(600, 1, 4, requires_grad=True)
    threads = torch.get_num_threads()
    try:
        gradients = []
        for count in (1, 3):
            torch.set_num_threads(count)
            gradients.append(torch.autograd.grad(causal_convolution(x, kernel).square().sum(), kernel)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*gradients)


def test_autocast_computes_in_float32():
    x, kernel = torch.randn(2, 20, 3), torch.randn(3, 1, 4)
    for backend in ("reference", "numba"):
        with torch.autocast("cpu", torch.bfloat16):
            y = causal_convolution(x, kernel, backend=backend)
        assert torch.equal(y, causal_convolution(x, kernel, backend=backend))


def test_flop_counter_sees_it():
    x, kernel = torch.randn(2, 8, 6, requires_grad=True), torch.randn(6, 1, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        causal_convolution(x, kernel).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * x.numel()
    torch.library.opcheck(
        torch.ops.bkray.causal_convolution.default, (x, kernel.detach().permute(1, 2, 0).contiguous())
    )
