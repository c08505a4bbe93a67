"""What the mixing and a training step cost on this CPU: python tests/benchmarks/bench_spectral.py"""

from __future__ import annotations

from collections.abc import Callable

import torch
from compare import Arm, compare, with_threads
from torch.nn import functional as F

from bkray.model import ResNetBK, ResNetBKConfig, Transformer, TransformerConfig, spectral_scan
from bkray.model.convolution import causal_convolution

Tensor = torch.Tensor

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 256, 192, 4096


def scan(backend: str) -> Arm:
    """Forward and backward of the scan."""
    inputs = [(0.9 * torch.rand(BATCH, LENGTH, WIDTH)).requires_grad_() for _ in range(4)]
    gradients = [torch.randn(BATCH, LENGTH, WIDTH) for _ in range(2)]
    return lambda: torch.autograd.grad(spectral_scan(*inputs, backend=backend), inputs, gradients)


def convolution(function: Callable[[Tensor, Tensor], Tensor]) -> Arm:
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    taps = torch.randn(WIDTH, 1, 4, requires_grad=True)
    gradient = torch.randn(BATCH, LENGTH, WIDTH)
    return lambda: torch.autograd.grad(function(x, taps), [x, taps], gradient)


def torch_convolution(x: Tensor, taps: Tensor) -> Tensor:
    return F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), taps, groups=WIDTH).transpose(1, 2)


def training_step(model: torch.nn.Module) -> Arm:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))

    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return run


def trunk_step(model: ResNetBK | Transformer) -> Arm:
    """Without head and loss: what the mixers and feed-forward layers cost."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    gradient = torch.randn(BATCH, LENGTH, WIDTH)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.hidden(tokens).backward(gradient)

    return run


def products() -> Arm:
    """The matrix products of a ResNetBK trunk alone, forward and backward."""
    shapes = [(WIDTH, WIDTH)] * 3 + [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    inputs = [torch.randn(BATCH * LENGTH, shape[1], requires_grad=True) for shape in shapes]
    gradients = [torch.randn(BATCH * LENGTH, shape[0]) for shape in shapes]

    def run() -> None:
        for _ in range(4):
            for x, weight, gradient in zip(inputs, weights, gradients, strict=True):
                torch.autograd.grad(F.linear(x, weight), [x, weight], gradient)

    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {
        "ResNetBK": ResNetBK(ResNetBKConfig(VOCABULARY)),
        "Transformer": Transformer(TransformerConfig(VOCABULARY)),
    }
    compare("scan, forward + backward", {name: scan(name) for name in ("numba", "chunked", "reference")})
    arms = {"numba": convolution(causal_convolution), "conv1d with groups": convolution(torch_convolution)}
    compare("convolution, forward + backward", arms)
    compare("scan, threads", {f"{count}": with_threads(count, scan("numba")) for count in (1, 2)})
    trunks = {f"{name} trunk": trunk_step(model) for name, model in models.items()}
    compare("trunk, forward + backward", {"ResNetBK's matrix products": products()} | trunks)
    compare(
        "training step with head and loss", {name: training_step(model) for name, model in models.items()}
    )
