"""What using gradients again saves, and costs: python tests/benchmarks/bench_gradient_cache.py [seed …]

500 steps of a small model on docstrings: plain, with the cache as it is and without its safeguards, and the
placebos: a cache that never hits, and plain runs of as many steps as the cache computed gradients, each with
its own completed schedule, one also at twice the rate. The arms take turns, step by step.
"""

from __future__ import annotations

import logging
import statistics
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from bkray.config import Recipe, parse_recipe
from bkray.corpus import list_shards, pack, read_shard, train_tokenizer
from bkray.corpus.windows import tokens_array
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData
from bkray.training.loop import TrainingRun

STEPS, BATCH, WINDOW = 500, 16, 64
OPEN = {"first_audits": 1, "audit": 0.02, "least_cosine": -1.0, "most_rise": 1e9}
ALIKE = {"threshold": 0.99, "adapt": {"hit_rate": 0.5}}
RATE = 2e-2  # the best of 1e-2, 2e-2 and 4e-2 for the plain run; half as long, 4e-2 is
Arm = tuple[int, float, dict[str, Any] | None]
"""Steps, learning rate, gradient cache."""
ARMS: dict[str, Arm] = {
    "plain": (STEPS, RATE, None),
    "a cache that never hits": (STEPS, RATE, {"kind": "stale", "threshold": 2.0}),
    "stale": (STEPS, RATE, {"kind": "stale"}),
    "stale, half to hit": (STEPS, RATE, {"kind": "stale", **ALIKE}),
    "control variate, half to hit": (STEPS, RATE, {"kind": "control_variate", **ALIKE}),
    "every second step": (STEPS, RATE, {"kind": "every"}),
    "stale, half to hit, open": (STEPS, RATE, {"kind": "stale", **ALIKE, **OPEN}),
    "control variate, half to hit, open": (
        STEPS,
        RATE,
        {"kind": "control_variate", **ALIKE, **OPEN, "audit": 0.5},
    ),
    "every second step, open": (STEPS, RATE, {"kind": "every", **OPEN}),
    "plain, 3/4 of the steps": (STEPS * 3 // 4, RATE, None),
    "plain, half of the steps": (STEPS // 2, RATE, None),
    "plain, half of the steps, 2 x the rate": (STEPS // 2, 2 * RATE, None),
}


def recipe(steps: int, lr: float, cache: dict[str, Any] | None) -> Recipe:
    return parse_recipe(
        {
            "name": "cache",
            "corpus": {"kind": "docstrings", "packages": ["networkx", "nltk", "numpy"]},
            "tokenizer": {"vocab_size": 1024},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 64, "n_layers": 2},
            "training": {
                "tokens": steps * BATCH * WINDOW,
                "batch_tokens": BATCH * WINDOW,
                "workers": 1,
                "lr": lr,
                "eval_windows": 1000,
                "gradient_cache": cache,
            },
        }
    )


def corpus(settings: Recipe) -> tuple[WindowData, int]:
    """Windows of the training and validation split, and the size of the vocabulary."""
    tables = [
        documents
        for shard in list_shards(settings.corpus)
        for documents, _ in read_shard(shard, settings.corpus, settings.cleaning, settings.seed)
    ]
    rows = pa.concat_tables(tables)
    splits = {name: rows.filter(pa.compute.equal(rows["split"], name)) for name in ("train", "validation")}
    tokenizer = train_tokenizer(splits["train"]["text"].to_pylist(), settings.tokenizer.vocab_size)
    windows = {name: tokens_array(pack(part, tokenizer, WINDOW)[0]) for name, part in splits.items()}
    return WindowData(windows["train"], windows["validation"]), tokenizer.get_vocab_size()


def trained(data: WindowData, vocabulary: int, seed: int) -> dict[str, dict[str, float]]:
    """Of every arm: validation loss, gradients computed, FLOPs, seconds, what the last audits found."""
    runs = {}
    for name, (steps, lr, cache) in ARMS.items():
        settings = recipe(steps, lr, cache).model_copy(update={"seed": seed})
        torch.manual_seed(seed)
        model = build_model(settings.model, vocabulary)
        sampler = CurriculumSampler(np.zeros(len(data.train)), BATCH, steps, start=1.0, seed=seed)
        runs[name] = TrainingRun(model, data, sampler, settings, None, Ledger(), None)
    for turn in range(1, STEPS + 1):
        for run in runs.values():
            if run.step < turn * run.recipe.steps // STEPS:
                run.train_step()
    return {name: figures(run) for name, run in runs.items()}


def figures(run: TrainingRun) -> dict[str, float]:
    costs = run.ledger.table()
    flops = run.ledger.total_flops
    run.validate()
    assert run.validation_loss is not None
    cosines = [cosine for cosine, _ in run.cache.audits] if run.cache else []
    return {
        "loss": run.validation_loss,
        "computed": costs["training"]["tokens"] / (BATCH * WINDOW),
        "flops": flops,
        "seconds": run.seconds,
        "hits": run.cache.hits if run.cache else 0,
        "off": bool(run.cache and run.cache.off),
        "cosine": statistics.mean(cosines) if cosines else float("nan"),
    }


def main(seeds: list[int]) -> None:
    data, vocabulary = corpus(recipe(STEPS, RATE, None))
    print(f"{len(data.train):,} windows, {vocabulary} tokens, seeds {seeds}", flush=True)
    results = [trained(data, vocabulary, seed) for seed in seeds]
    print(f"{'':38}    loss     over plain  computed  hits   off  cosine  FLOPs   time")
    for name in ARMS:
        rows = [result[name] for result in results]
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        rise, flops, seconds = (
            [row[key] / result["plain"][key] for row, result in zip(rows, results, strict=True)]
            for key in ("loss", "flops", "seconds")
        )
        over = [f"{100 * (ratio - 1):+.1f}" for ratio in (statistics.mean(rise), min(rise), max(rise))]
        print(
            f"{name:38} {mean['loss']:7.4f} {over[0]:>6} % ({over[1]} to {over[2]}) {mean['computed']:6.0f} "
            f"{mean['hits']:6.0f} {sum(row['off'] for row in rows):2}/{len(seeds)} {mean['cosine']:6.2f} "
            f"{statistics.mean(flops):6.2f} {statistics.mean(seconds):6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("bkray.training").addHandler(logging.StreamHandler(sys.stdout))
    main([int(seed) for seed in sys.argv[1:]] or [0, 1])
