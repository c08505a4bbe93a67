"""The hand-written backward passes against autograd's."""

import pytest
import torch
from torch.nn import functional as F

from bkray.model.layers import relu_squared, rms_norm
from bkray.model.resnet_bk import _ForgetGate, _RationalPhase


@pytest.mark.parametrize("function", [rms_norm, relu_squared, _ForgetGate.apply])
def test_gradients(function):
    x = (3 * torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(function, x)


def test_rms_norm_is_torchs():
    x = torch.randn(4, 7)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (7,), eps=1e-6))


def test_rational_phase():
    head = (0.1 + torch.rand(2, 3, 4, 1, dtype=torch.float64)).requires_grad_()
    channel = (0.1 + torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(_RationalPhase.apply, (head, channel))
    cos, sin = _RationalPhase.apply(head, channel)
    torch.testing.assert_close(torch.atan2(sin, cos), 2 * torch.atan(head * channel))


def test_forget_gate_saturates_without_infinite_gradients():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    f = _ForgetGate.apply(logits)
    f.sum().backward()
    assert ((f > 0) & (f < 1)).all()
    assert torch.isfinite(logits.grad).all()
