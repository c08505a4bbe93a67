"""What skipping saves, and does to the loss: python tests/benchmarks/bench_skipping.py [effect [SEEDS]|noise]

Training steps of ResNet-BK, d = 192, 4 layers, V = 4096, 8 x 256 tokens, without skipping and with 20 % and
50 % skipped: the time of a step for each window that it drew, on the wall and of the processor. With
`effect`: short runs of a small model of the bytes of Python's own help texts at equal computed tokens: plain,
and 20 % and 50 % skipped unbiased, biased and at random. With `noise`: the variance that the unbiased choice
adds to the gradient of such a model, by floor, where the losses are predicted without error.
"""

from __future__ import annotations

import pydoc_data.topics
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bkray.config import Recipe, parse_recipe
from bkray.config.skip import Skip
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import ExampleSkipper, Ledger, WindowData, train
from bkray.training.loop import TrainingRun
from bkray.training.techniques.skipping import rank_correlation, systematic_sample

LENGTH, VOCABULARY, BATCH, WARM_UP, ROUNDS = 256, 4096, 8, 3, 30
SHARES = (0.0, 0.2, 0.5)
SMALL = {"kind": "resnet_bk", "d_model": 64, "n_layers": 2}
STEPS, EFFECT_BATCH = 300, 8


def recipe(model: dict[str, Any], window: int, steps: int, batch: int, **training: Any) -> Recipe:
    settings = {"tokens": steps * batch * window, "batch_tokens": batch * window, "workers": 1, **training}
    return parse_recipe(
        {
            "name": "skipping",
            "corpus": {"kind": "docstrings"},
            "window": window,
            "model": model,
            "training": settings,
        }
    )


def shuffling(windows: int, settings: Recipe) -> CurriculumSampler:
    return CurriculumSampler(
        np.zeros(windows), settings.batch_windows, settings.steps, start=1.0, seed=settings.seed
    )


def times() -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4000, LENGTH + 1)).astype(np.int32)
    runs = {}
    for share in SHARES:
        skip = {"share": share, "until": 1.0} if share else None
        settings = recipe({"kind": "resnet_bk"}, LENGTH, 1000, BATCH, skip=skip)
        torch.manual_seed(0)
        model, sampler = build_model(settings.model, VOCABULARY), shuffling(len(tokens), settings)
        data = WindowData(tokens, tokens[:0])
        runs[share] = TrainingRun(model, data, sampler, settings, None, Ledger(), None)
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[tuple[float, str], list[float]] = {(share, name): [] for share in SHARES for name in clocks}
    for turn in range(WARM_UP + ROUNDS):
        for share, run in runs.items():
            before = {name: clock() for name, clock in clocks.items()}
            run.train_step()
            for name, clock in clocks.items():
                if turn >= WARM_UP:
                    seconds[share, name].append(clock() - before[name])
    for name in clocks:
        for share, run in runs.items():
            drawn = run.skipper.candidates(0) if run.skipper else BATCH
            pairs = zip(seconds[share, name], seconds[0.0, name], strict=True)
            ratio, ideal = statistics.median((a / drawn) / (b / BATCH) for a, b in pairs), 1 - BATCH / drawn
            saved = f", {(1 - ratio) / ideal:.1%} of the ideal saving {ideal:.0%}" if ideal else ""
            step = 1e3 * statistics.median(seconds[share, name])
            print(f"  {name:9} {share:4.0%} skipped: step {step:6.1f} ms, a candidate x {ratio:.3f}{saved}")
    for share, run in runs.items():
        spent = run.ledger.table()
        if "predictor" in spent:
            part = (
                spent["predictor"]["seconds"] / run.seconds,
                spent["predictor"]["flops"] / run.ledger.total_flops,
            )
            print(f"  predictor at {share:.0%}: {part[0]:.2%} of the time, {part[1]:.1e} of the FLOPs")


def help_texts() -> WindowData:
    text = np.frombuffer(Path(pydoc_data.topics.__file__).read_bytes(), np.uint8).astype(np.int32)
    windows = np.random.default_rng(0).permutation(text[: len(text) // 129 * 129].reshape(-1, 129))
    return WindowData(windows[:-256], windows[-256:])


def effect(seeds: int) -> None:
    data = help_texts()
    arms: dict[str, dict[str, Any] | None] = {"plain": None}
    for share in (0.2, 0.5):
        arms |= {
            f"{share:.0%} unbiased": {"share": share},
            f"{share:.0%} biased": {"share": share, "unbiased": False},
            f"{share:.0%} random": {"share": share, "by": "random"},
        }
    arms["50% unbiased, floor 0.1"] = {"share": 0.5, "floor": 0.1}
    losses: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, skip in arms.items():
            loss, correlation = trained(data, skip, seed)[1]
            losses[name].append(loss)
            difference = np.array(losses[name]) - np.array(losses["plain"])
            error = difference.std(ddof=1) / len(difference) ** 0.5 if seed else np.nan
            print(
                f"  seed {seed}  {name:24} {loss:.4f} nats a byte, less plain {difference.mean():+.4f} "
                f"± {error:.4f}, rank correlation {correlation:.2f}",
                flush=True,
            )


def noise() -> None:
    data, batch = help_texts(), EFFECT_BATCH
    model, _ = trained(data, None, 0)
    gram, losses = gram_of_gradients(model, data.train[:300])
    plain = float(np.diag(gram).mean() - gram.mean()) / batch
    print(f"  rank correlation of loss and norm {rank_correlation(losses, np.diag(gram)):.2f}")
    rng = np.random.default_rng(0)
    for share, floors in ((0.2, (0.1, 0.2, 0.4, 0.6, 0.79)), (0.5, (0.1, 0.2, 0.4, 0.49))):
        for floor in floors:
            skipper = ExampleSkipper(Skip(share=share, floor=floor, until=1.0), batch, 1, 300)
            drawn, added = skipper.candidates(0), []
            for _ in range(2000):
                candidates = rng.choice(300, drawn, replace=False)
                probabilities = skipper.probabilities(losses[candidates])
                off = np.full(drawn, -1 / drawn)
                order = np.argsort(losses[candidates])
                kept = order[systematic_sample(probabilities[order], rng.random())]
                off[kept] += 1 / (drawn * probabilities[kept])
                added.append(off @ gram[np.ix_(candidates, candidates)] @ off)
            print(
                f"  {share:.0%} skipped, floor {floor:4}: {np.mean(added) / plain:.2f} of the variance of a "
                f"plain batch, beside the {batch / drawn:.2f} of {drawn} candidates",
                flush=True,
            )


def gram_of_gradients(model: nn.Module, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner products (W, W) of the gradients of single windows, and their losses (W,)."""
    gradients, losses = [], []
    for window in torch.from_numpy(windows).long():
        loss = F.cross_entropy(model(window[None, :-1])[0], window[1:])
        model.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        losses.append(loss.item())
    stacked = torch.stack(gradients).double()
    return (stacked @ stacked.T).numpy(), np.array(losses)


class Correlations(RunLog):
    """Keeps the logged rank correlations in memory; writes nothing."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, **values: Any) -> None:
        self.values.append(values.get("rank_correlation", np.nan))

    def truncate_after(self, step: int) -> None:
        return None


def trained(
    data: WindowData, skip: dict[str, Any] | None, seed: int
) -> tuple[nn.Module, tuple[float, float]]:
    """The model, its validation loss in nats a byte, and the mean rank correlation of the predictor."""
    often = {"eval_every": STEPS, "eval_windows": len(data.validation)}
    settings = recipe(SMALL, data.train.shape[1] - 1, STEPS, EFFECT_BATCH, lr=1e-2, skip=skip, **often)
    settings = settings.model_copy(update={"seed": seed})
    torch.manual_seed(seed)
    log, model = Correlations(), build_model(settings.model, 256)
    result = train(model, data, shuffling(len(data.train), settings), settings, reporter=log)
    assert result.validation_loss is not None
    finite = [value for value in log.values if np.isfinite(value)]
    return model, (result.validation_loss, float(np.mean(finite)) if finite else np.nan)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["effect"]:
        effect(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    else:
        noise() if sys.argv[1:] == ["noise"] else times()
