"""What leaving work out saves of a step: python tests/benchmarks/bench_savings.py [frozen|tokens|length]

Whole steps (forward, backward, clip, Muon) of the loop on random tokens, d = 192, 4 layers, V = 4096,
4 windows of 256: frozen layers with and without the cache of what they give, tokens selected, windows cut.
The arms take turns; beside the ratio of times stand the ratio of what the ledger is charged for training and
what the optimizer keeps.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from compare import medians

from bkray.config import parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData
from bkray.training.loop import TrainingRun
from bkray.training.optimization.optimizers import optimizers_of

BATCH, WINDOW, LAYERS, VOCABULARY, ROUNDS = 4, 256, 4, 4096, 9
FROZEN: dict[str, dict[str, Any]] = {"plain": {}}
for layers in (1, 2, 3):
    frozen = {"start_from": "unread", "freeze": layers}
    FROZEN[f"freeze {layers}"] = frozen
    FROZEN[f"freeze {layers}, found in memory"] = {**frozen, "activation_cache": {}}
    FROZEN[f"freeze {layers}, found on disk"] = {**frozen, "activation_cache": {"where": "disk"}}
TOKENS: dict[str, dict[str, Any]] = {"plain": {}}
for keep in (1.0, 0.6, 0.3):
    TOKENS[f"keep {keep}"] = {"token_selection": {"keep": keep}}
LENGTHS: dict[str, dict[str, Any]] = {"plain": {}}
for start in (128, 64, 32):
    LENGTHS[f"pieces of {start}"] = {"length": {"start": start, "until": 1.0}}


def arm(model: dict[str, Any], training: dict[str, Any]) -> TrainingRun:
    """A run whose windows have all been seen once: what can be found is found."""
    settings = {"tokens": 10**8, "batch_tokens": BATCH * WINDOW, "workers": 1, **training}
    recipe = parse_recipe(
        {
            "name": "bench",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"n_layers": LAYERS, **model},
            "training": settings,
        }
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (2 * BATCH, WINDOW + 1)).astype(np.int32)
    reference = rng.random((2 * BATCH, WINDOW)) * 10
    torch.manual_seed(0)
    sampler = CurriculumSampler(np.zeros(len(tokens)), BATCH, recipe.steps, start=1.0, seed=0)
    data = WindowData(tokens, tokens[:0], reference)
    run = TrainingRun(build_model(recipe.model, VOCABULARY), data, sampler, recipe, None, Ledger(), None)
    for _ in range(2):
        run.train_step()
    run.ledger = Ledger()
    return run


def optimizer_mib(run: TrainingRun) -> float:
    """MiB of the optimizer's state."""
    kept = [state for one in optimizers_of(run.optimizer) for state in one.state.values()]
    return sum(value.nbytes for state in kept for value in state.values()) / 2**20


def table(title: str, model: dict[str, Any], settings: dict[str, dict[str, Any]]) -> None:
    runs = {name: arm(model, training) for name, training in settings.items()}
    times = medians({name: run.train_step for name, run in runs.items()}, ROUNDS)
    charged = {name: run.ledger.table()["training"]["flops"] for name, run in runs.items()}
    print(f"{title}: ms, ratio, ratio of FLOPs, optimizer MiB", flush=True)
    for name, (seconds, ratio) in times.items():
        flops = charged[name] / charged["plain"]
        print(
            f"  {name:28} {1e3 * seconds:8.1f}   {ratio:.2f}   {flops:.2f}   {optimizer_mib(runs[name]):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    bk, transformer = {"kind": "resnet_bk"}, {"kind": "transformer"}
    asked = sys.argv[1:] or ["frozen", "tokens", "length"]
    if "frozen" in asked:
        table("frozen prefix, ResNetBK", bk, FROZEN)
    if "tokens" in asked:
        table("token selection, ResNetBK", bk, TOKENS)
    if "length" in asked:
        table("length, ResNetBK", bk, LENGTHS)
        table("length, Transformer", transformer, LENGTHS)
