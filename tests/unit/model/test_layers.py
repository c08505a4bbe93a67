"""The hand-written backward passes against autograd's."""

import pytest
import torch
from torch.nn import functional as F

from bkray.model.layers import relu_squared, rms_norm
from bkray.model.mixing import forget_gate, rational_phase


@pytest.mark.parametrize("function", [rms_norm, relu_squared, forget_gate])
def test_gradients(function):
    x = (3 * torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(function, x)


def test_rms_norm_is_torchs():
    x = torch.randn(4, 7)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (7,), eps=1e-6))


def test_rational_phase():
    head = (0.1 + torch.rand(2, 3, 4, dtype=torch.float64)).requires_grad_()
    tangent = (0.1 + torch.rand(20, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(rational_phase, (head, tangent))
    cos, sin = rational_phase(head, tangent)
    expected = 2 * torch.atan(head.repeat_interleave(5, -1) * tangent)
    torch.testing.assert_close(torch.atan2(sin, cos), expected)


def test_forget_gate_saturates_without_infinite_gradients():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    f = forget_gate(logits)
    f.sum().backward()
    assert ((f > 0) & (f < 1)).all()
    assert torch.isfinite(logits.grad).all()
