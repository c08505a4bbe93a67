"""What leaving sites out of layers saves, and costs: python tests/benchmarks/bench_options.py [effect]

Forward passes, and forward and backward, of ResNet-BK's body (no head): plain, with halting at forced mean
depths, and with coarse layers. With `effect`: a small model of the bytes of Python's own help texts, trained
for 300 steps with each option.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import Arm, compare

from bkray.config import parse_recipe
from bkray.config.model import Halting, Multiscale
from bkray.curriculum import CurriculumSampler
from bkray.model import ResNetBK, ResNetBKConfig, build_model
from bkray.training import Ledger, WindowData, train

BATCH, LENGTH, LAYERS, VOCABULARY = 8, 256, 4, 4096
SHARES = (1.0, 0.75, 0.5)


def halting(share: float, tokens: torch.Tensor) -> ResNetBK:
    """Units drawn at random, and the threshold that takes sites through `share` of the layers on average."""
    model = ResNetBK(ResNetBKConfig(VOCABULARY, n_layers=LAYERS, halting=Halting())).eval()
    torch.nn.init.normal_(model.stack.weight, std=0.1)
    low, high = 0.0, 1.0
    for _ in range(20 if share < 1 else 0):
        model.stack.threshold = (low + high) / 2
        with torch.no_grad():
            model.hidden(tokens)
        deep = model.measurements()["depth"] > share * LAYERS
        low, high = (model.stack.threshold, high) if deep else (low, model.stack.threshold)
    model.stack.threshold = low
    model.hidden(tokens)
    print(f"threshold {low:.4f}: mean depth {model.measurements()['depth']:.3f} of {LAYERS}", flush=True)
    return model


def forward(model: ResNetBK, tokens: torch.Tensor) -> Arm:
    def run() -> None:
        with torch.no_grad():
            model.hidden(tokens)

    return run


def both_ways(model: ResNetBK, tokens: torch.Tensor) -> Arm:
    gradient = torch.randn(*tokens.shape, model.config.d_model)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.hidden(tokens).backward(gradient)

    return run


def trained(model: dict[str, Any], data: WindowData, seed: int = 0) -> str:
    """Held-out bits a byte, mean depth on held-out text, FLOPs and seconds of a training run."""
    window = data.train.shape[1] - 1
    settings = {
        "tokens": 300 * 16 * window,
        "batch_tokens": 16 * window,
        "workers": 1,
        "eval_every": 300,
        "lr": 1e-2,
    }
    recipe = parse_recipe(
        {
            "name": "effect",
            "corpus": {"kind": "docstrings"},
            "window": window,
            "model": {"kind": "resnet_bk", "d_model": 64, "n_layers": LAYERS, **model},
            "training": settings,
        }
    )
    torch.manual_seed(seed)
    network, ledger, started = build_model(recipe.model, 256), Ledger(), time.perf_counter()
    sampler = CurriculumSampler(
        np.zeros(len(data.train)), recipe.batch_windows, recipe.steps, start=1.0, seed=seed
    )
    result = train(network, data, sampler, recipe, ledger=ledger)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        network.eval()(torch.from_numpy(data.validation[:64, :-1]).long())
    depth = network.measurements().get("depth", len(network.blocks))
    bits = result.validation_loss / np.log(2)
    flops = ledger.table()["training"]["flops"]
    return f"{bits:.3f} bits a byte, depth {depth:.2f}, {flops:.3g} FLOPs, {seconds:.1f} s"


def effect() -> None:
    text = np.frombuffer(Path(pydoc_data.topics.__file__).read_bytes(), np.uint8).astype(np.int32)
    windows = np.random.default_rng(0).permutation(text[: len(text) // 129 * 129].reshape(-1, 129))
    data = WindowData(windows[:-128], windows[-128:])
    options: dict[str, dict[str, Any]] = {"plain": {}}
    options |= {f"plain, {count} layers": {"n_layers": count} for count in (3, 2)}
    options |= {
        f"ponder {ponder}": {"halting": {"ponder": ponder, "warmup": 0.5}} for ponder in (0.003, 0.01, 0.03)
    }
    options |= {
        f"layers 1 and 2 at 1/{factor}": {"multiscale": {"layers": [1, 2], "factor": factor}}
        for factor in (2, 4)
    }
    for name, option in options.items():
        print(f"  {name:24} {trained(option, data)}", flush=True)


def times() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    models = {"plain": ResNetBK(ResNetBKConfig(VOCABULARY, n_layers=LAYERS))}
    models |= {f"halting, depth {share:.0%}": halting(share, tokens) for share in SHARES}
    for factor in (2, 4):
        option = Multiscale(layers=(1, 2), factor=factor)
        config = ResNetBKConfig(VOCABULARY, n_layers=LAYERS, multiscale=option)
        models[f"layers 1 and 2 at 1/{factor}"] = ResNetBK(config)
    compare("forward", {name: forward(model, tokens) for name, model in models.items()}, rounds=9)
    compare(
        "forward + backward", {name: both_ways(model, tokens) for name, model in models.items()}, rounds=9
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    effect() if sys.argv[1:] == ["effect"] else times()
