"""What the mixing and a training step cost on this CPU: python tests/benchmarks/bench_spectral.py

All arms of a comparison take turns within each round. Printed are medians over the rounds, and of the ratios
to the first arm: on a shared machine, trust the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from bkray.model import ResNetBK, ResNetBKConfig, Transformer, TransformerConfig, spectral_scan
from bkray.model.convolution import causal_convolution

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 256, 192, 4096


def compare(title: str, arms: dict[str, Callable[[], object]], rounds: int = 15) -> None:
    """Print the median milliseconds of every arm, and its median ratio to the first."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()  # compile and warm up
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            times[name].append(1e3 * (time.perf_counter() - start))
    first = next(iter(times.values()))
    print(title)
    for name, values in times.items():
        ratio = statistics.median(value / base for value, base in zip(values, first, strict=True))
        print(f"  {name:28} {statistics.median(values):8.2f} ms   x {ratio:.2f}")


def with_threads(count: int, arm: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        torch.set_num_threads(count)
        arm()
        torch.set_num_threads(1)

    return run


def scan(backend: str) -> Callable[[], object]:
    """Forward and backward of the scan."""
    inputs = [(0.9 * torch.rand(BATCH, LENGTH, WIDTH)).requires_grad_() for _ in range(4)]
    gradients = [torch.randn(BATCH, LENGTH, WIDTH) for _ in range(2)]
    return lambda: torch.autograd.grad(spectral_scan(*inputs, backend=backend), inputs, gradients)


def convolution(backend: str) -> Callable[[], object]:
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    taps = torch.randn(WIDTH, 1, 4, requires_grad=True)
    gradient = torch.randn(BATCH, LENGTH, WIDTH)
    return lambda: torch.autograd.grad(causal_convolution(x, taps, backend=backend), [x, taps], gradient)


def training_step(model: torch.nn.Module) -> Callable[[], object]:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))

    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return run


def trunk_step(model: ResNetBK | Transformer) -> Callable[[], object]:
    """Without head and loss: what the mixers and feed-forward layers cost."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    gradient = torch.randn(BATCH, LENGTH, WIDTH)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.hidden(tokens).backward(gradient)

    return run


def products() -> Callable[[], object]:
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
    compare("scan, forward + backward", {name: scan(name) for name in ("numba", "reference")})
    compare("convolution, forward + backward", {name: convolution(name) for name in ("numba", "reference")})
    compare("scan, threads", {f"{count}": with_threads(count, scan("numba")) for count in (1, 2)})
    trunks = {f"{name} trunk": trunk_step(model) for name, model in models.items()}
    compare("trunk, forward + backward", {"ResNetBK's matrix products": products()} | trunks)
    compare(
        "training step with head and loss", {name: training_step(model) for name, model in models.items()}
    )
