"""The output head in chunks: the losses and gradients of the whole, and no logits as a whole."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bkray.model import head
from bkray.model.head import CHUNK, head_losses
from tests.devices import DEVICES


@pytest.mark.parametrize("rows", [3, CHUNK + 5])
@pytest.mark.parametrize("device", DEVICES)
def test_the_head_in_chunks_gives_the_losses_and_gradients_of_the_whole(monkeypatch, device, rows):
    monkeypatch.setattr(head, "GPU_LOGITS", 20 * CHUNK)  # two chunks there too
    torch.manual_seed(0)
    with torch.device(device):
        hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
        targets, gradient = torch.randint(20, (rows,)), torch.randn(rows)
    gradient[::3] = 0
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    losses = head_losses(hidden, weight, targets)
    torch.testing.assert_close(losses, expected)
    for one, other in zip(
        torch.autograd.grad(losses, (hidden, weight), gradient),
        torch.autograd.grad(expected, (hidden, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_under_autocast_products_are_in_bfloat16_and_sums_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 64, requires_grad=True), torch.randn(20, 64, requires_grad=True)
    targets, gradients = torch.randint(20, (40,)), []
    for pass_ in (head_losses, lambda h, w, t: F.cross_entropy(F.linear(h, w).float(), t, reduction="none")):
        with torch.autocast("cpu", torch.bfloat16):
            losses = pass_(hidden, weight, targets)
        assert losses.dtype == torch.float32
        gradients.append(torch.autograd.grad(losses.mean(), (hidden, weight)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=2e-3)


def test_logits_exist_a_chunk_at_a_time_and_rows_without_a_gradient_cost_nothing(largest):
    rows, width, vocabulary = 6 * CHUNK, 4, 50
    hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocabulary, width)
    targets, gradient = torch.randint(vocabulary, (rows,)), torch.zeros(rows)
    gradient[: rows // 3] = 1
    weight.requires_grad_()
    with largest, FlopCounterMode(display=False) as counter:
        head_losses(hidden, weight, targets).backward(gradient)
    assert largest.most == CHUNK * vocabulary
    assert counter.get_total_flops() == (1 + 3 / 3) * 2 * rows * width * vocabulary
