"""Operators are there for all of torch, and a model that only reads starts without torch's compiler."""

import subprocess
import sys

import torch

from bkray.model.operators import operator

READS = """
import sys
import torch
from bkray.config.model import ResNetBKModel
from bkray.model import build_model
model = build_model(ResNetBKModel(kind="resnet_bk", d_model=32, n_layers=1), vocab_size=30)
model(torch.tensor([[1, 2, 3]])).sum().backward()
assert "torch._dynamo" not in sys.modules
"""


@operator("bkray::doubled_for_test")
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


doubled.register_fake(torch.empty_like)
doubled.register_autograd(lambda ctx, g: 2 * g, setup_context=lambda ctx, inputs, output: None)


def test_an_operator_has_values_gradients_and_fakes():
    torch.library.opcheck(torch.ops.bkray.doubled_for_test, (torch.randn(3, requires_grad=True),))
    x = torch.tensor([3.0], requires_grad=True)
    doubled(x).backward()
    assert (doubled(x).item(), x.grad.item()) == (6.0, 2.0)


def test_a_model_is_read_without_the_compiler():
    subprocess.run([sys.executable, "-c", READS], check=True)
