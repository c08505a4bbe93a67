"""How far the memory reaches: python tests/benchmarks/bench_recall.py [STEPS] [ARM …]

Copy after a distance: 8 random symbols, a stretch of noise, a marker, and then the 8 symbols have to come out
in order. Distances are log-uniform from 32 to 4,096 in training; the accuracy of the symbols is measured at
fixed ones. One seed, 2 layers of width 64, Muon. Prints a table and draws docs/recall.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bkray.config.model import GRUModel, Model, ResNetBKModel, TransformerModel
from bkray.config.training import Training
from bkray.model import build_model
from bkray.training import build_optimizer, build_schedule

SYMBOLS, NOISE, COPIED = 16, 16, 8
MARKER = SYMBOLS + NOISE
VOCABULARY = MARKER + 1
DISTANCES = (64, 128, 256, 512, 1024, 2048, 4096)
BATCH_TOKENS, TEST_SEQUENCES = 8192, 64
SIZES = {"d_model": 64, "n_layers": 2}
ARMS: dict[str, Model] = {
    "spectral": ResNetBKModel(kind="resnet_bk", n_heads=8, **SIZES),
    "spectral, memory 4096": ResNetBKModel(kind="resnet_bk", n_heads=8, longest_memory=4096, **SIZES),
    "gated": ResNetBKModel(kind="resnet_bk", mixer="gated", **SIZES),
    "gated, memory 4096": ResNetBKModel(kind="resnet_bk", mixer="gated", longest_memory=4096, **SIZES),
    "transformer": TransformerModel(kind="transformer", n_heads=4, **SIZES),
    "gru": GRUModel(kind="gru", **SIZES),
}


def sequences(count: int, distance: int, rng: np.random.Generator) -> torch.Tensor:
    """(count, 2 x COPIED + distance + 1) tokens; the last COPIED are the first ones again."""
    copied = rng.integers(SYMBOLS, size=(count, COPIED))
    noise = rng.integers(SYMBOLS, SYMBOLS + NOISE, size=(count, distance))
    marker = np.full((count, 1), MARKER)
    return torch.from_numpy(np.concatenate([copied, noise, marker, copied], axis=1))


def answers(network: nn.Module, tokens_BN: torch.Tensor) -> torch.Tensor:
    """Logits (B, COPIED, V) where the symbols have to come out."""
    return network(tokens_BN[:, :-1])[:, -COPIED:]


def train(model: Model, steps: int) -> nn.Module:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = build_model(model, VOCABULARY)
    settings = Training(optimizer="muon", lr=5e-3, workers=1)
    optimizer = build_optimizer(network, settings)
    schedule = build_schedule(optimizer, settings, steps)
    for _ in range(steps):
        distance = int(32 * 128 ** rng.random())
        tokens = sequences(max(1, BATCH_TOKENS // (distance + 2 * COPIED)), distance, rng)
        F.cross_entropy(answers(network, tokens).flatten(0, 1), tokens[:, -COPIED:].flatten()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return network


@torch.no_grad()
def accuracy(network: nn.Module, distance: int) -> float:
    """Share of the symbols that come out right."""
    rng = np.random.default_rng(distance)
    right = 0.0
    for _ in range(TEST_SEQUENCES // 4):
        tokens = sequences(4, distance, rng)
        right += float((answers(network, tokens).argmax(-1) == tokens[:, -COPIED:]).float().mean())
    return right / (TEST_SEQUENCES // 4)


def draw(reached: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    from bkray.reporting.style import STYLE, matplotlib

    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for name, shares in reached.items():
            axes.plot(DISTANCES, shares, "o-", label=name, markersize=4)
        axes.axhline(1 / SYMBOLS, color="#5b6570", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(DISTANCES, [f"{distance:,}" for distance in DISTANCES])
        axes.set(title="Copied symbols that come out right", xlabel="distance, tokens", ylim=(0, 1.04))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)


def main(steps: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    reached = {}
    print(f"{'':24}" + "".join(f"{distance:>8,}" for distance in DISTANCES), flush=True)
    for name in names or ARMS:
        network = train(ARMS[name], steps)
        reached[name] = [accuracy(network, distance) for distance in DISTANCES]
        print(f"{name:24}" + "".join(f"{share:8.3f}" for share in reached[name]), flush=True)
    draw(reached, Path(__file__).parents[2] / "docs" / "recall.svg")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given.pop(0)) if given and given[0].isdigit() else 2000, given)
