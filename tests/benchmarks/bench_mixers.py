"""The mixing layer with its projections, forward and backward: python tests/benchmarks/bench_mixers.py

On the CPU: one sequence of N tokens, width 256, against attention, nn.GRU and the real gated recurrence, how
the cost of a token grows with N, what a second thread brings, and the resolvent's diagonal against a loop.
Where there is a GPU: the share of the copy bandwidth that the fused scan reaches, and a training step at
N = 8192 against flash attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from compare import Arm, compare, medians, with_threads
from torch import nn
from torch.nn import functional as F

from bkray.model import (
    ResNetBK,
    ResNetBKConfig,
    Transformer,
    TransformerConfig,
    resolvent_diagonal,
    spectral_scan,
)
from bkray.model.mixers import GatedMixer, SpectralMixer

WIDTH, HEADS = 256, 16
LENGTHS = (512, 2048, 8192, 65536)
ROUNDS = {512: 9, 2048: 9, 8192: 5, 65536: 3}


class Attention(nn.Module):
    """F.scaled_dot_product_attention, causal, 4 heads, between its projections; no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.output = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def layer_step(layer: nn.Module, length: int, batch: int = 1) -> Arm:
    x, gradient = torch.randn(batch, length, WIDTH, requires_grad=True), torch.randn(batch, length, WIDTH)

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(gradient)

    return run


def layers() -> dict[str, nn.Module]:
    return {
        "spectral": SpectralMixer(WIDTH, HEADS),
        "real gated": GatedMixer(WIDTH),
        "attention": Attention(),
        "GRU": Recurrent(),
    }


def against_others() -> None:
    """Every length its own interleaved run; short ones many times a turn, so that a turn is long enough."""
    print("layer with projections, one sequence, one thread: us a token, ratio to spectral")
    for length in LENGTHS:
        repeats = max(1, 8192 // length)
        arms = {name: repeated(layer_step(layer, length), repeats) for name, layer in layers().items()}
        for name, (seconds, ratio) in medians(arms, ROUNDS[length]).items():
            print(
                f"  N={length:<6} {name:12} {1e6 * seconds / length / repeats:8.1f}   x {ratio:.2f}",
                flush=True,
            )


def growth() -> None:
    """The slope of log seconds over log N, from arms of every length in one interleaved run."""
    for name in ("spectral", "real gated"):
        layer = layers()[name]
        arms = {str(n): repeated(layer_step(layer, n), max(1, 8192 // n)) for n in LENGTHS}
        found = medians(arms, 5)
        per_token = [found[str(n)][0] / max(n, 8192) for n in LENGTHS]
        slope = 1 + math.log(per_token[-1] / per_token[0]) / math.log(LENGTHS[-1] / LENGTHS[0])
        figures = "  ".join(f"{n}: {1e6 * value:.1f}" for n, value in zip(LENGTHS, per_token, strict=True))
        print(f"growth, {name}: us a token {figures}; log-log slope {slope:.3f}", flush=True)


def threads() -> None:
    """One sequence splits by channels only, several split by sequences as well."""
    for batch, length in ((1, 8192), (8, 1024)):
        step = layer_step(SpectralMixer(WIDTH, HEADS), length, batch)
        arms = {f"{count} thread(s)": with_threads(count, step) for count in (1, 2)}
        compare(f"threads, layer with projections, {batch} x {length} tokens", arms, rounds=9)
    inputs = [(0.9 * torch.rand(1, 8192, WIDTH)).requires_grad_() for _ in range(4)]
    gradients = [torch.randn(1, 8192, WIDTH) for _ in range(2)]

    def scan() -> object:
        return torch.autograd.grad(spectral_scan(*inputs), inputs, gradients)

    arms = {f"{count} thread(s)": with_threads(count, scan) for count in (1, 2)}
    compare("threads, the scan alone, 1 x 8192 tokens", arms)


def diagonal() -> None:
    """The loop is autograd's: what a user would write."""
    a, b = (torch.randn(8, 2048, 32, requires_grad=True) for _ in range(2))
    eta = (0.1 + torch.rand(8, 2048, 32)).requires_grad_()

    def step(backend: str) -> Callable[[], None]:
        def run() -> None:
            left = (
                python_loop(a, b, eta)
                if backend == "loop"
                else resolvent_diagonal(a, b, eta, backend=backend)
            )
            torch.autograd.grad(torch.view_as_real(left).sum(), [a, b, eta])

        return run

    arms = {"numba": step("numba"), "chunked": step("chunked"), "Python loop, autograd": step("loop")}
    compare("resolvent diagonal, (B, N, H) = (8, 2048, 32), one thread", arms, rounds=7)


def python_loop(a: torch.Tensor, b: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
    z, left, sites = torch.complex(a, -eta), torch.zeros_like(a[:, 0]), []
    for i in range(a.shape[1]):
        left = 1 / (z[:, i] - b[:, i] ** 2 * left)
        sites.append(left)
    return torch.stack(sites, dim=1)


def repeated(arm: Arm, count: int) -> Arm:
    def run() -> None:
        for _ in range(count):
            arm()

    return run


def on_a_gpu() -> None:
    """Bytes of the scan: 4 read and 2 written forward, 8 read and 4 written backward, a real each."""
    with torch.device("cuda"):
        shape = (16, 8192, 512)
        inputs = [(0.9 * torch.rand(shape)).requires_grad_() for _ in range(4)]
        gradients = [torch.randn(shape) for _ in range(2)]
        source = torch.randn(shape)
        target = torch.empty_like(source)
        arms = {
            "copy": lambda: target.copy_(source),
            "scan": lambda: torch.autograd.grad(spectral_scan(*inputs), inputs, gradients),
        }
        found = medians(arms, 15)
        share = (18 / 2) * found["copy"][0] / found["scan"][0]
        print(f"fused scan, forward + backward: {100 * share:.0f} % of the copy bandwidth", flush=True)
        models = {
            "ResNetBK": ResNetBK(ResNetBKConfig(4096, 512, 8)),
            "Transformer, flash": Transformer(TransformerConfig(4096, 512, 8, 8)),
        }
        tokens = torch.randint(4096, (4, 8193))
    arms = {name: training_step(torch.compile(model), tokens) for name, model in models.items()}
    compare("training step, bfloat16 autocast, torch.compile, 4 sequences of 8192", arms)


def training_step(model: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> Arm:
    def run() -> None:
        with (
            nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION),
            torch.autocast("cuda", torch.bfloat16),
        ):
            logits = model(tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    against_others()
    growth()
    threads()
    diagonal()
    if torch.cuda.is_available():
        on_a_gpu()
    else:
        print("no CUDA device: copy bandwidth and the training step on a GPU are not measured")
