"""How long the loop waits for its batches and checkpoints: python tests/benchmarks/bench_loop.py

The model of the defaults, 8 x 256 tokens a step, on 100,000 windows that are read from a memory-mapped file;
the arms take turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bkray.config import Recipe
from bkray.corpus.mapped import map_windows
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Checkpointer, WindowData, batches, build_optimizer, train
from bkray.training.ahead import Ahead

WINDOWS, WINDOW, VOCABULARY, STEPS, ROUNDS, SAVES = 100_000, 256, 4096, 10, 3, 12
RECIPE = Recipe.model_validate(
    {
        "name": "loop",
        "corpus": {"kind": "docstrings"},
        "window": WINDOW,
        "training": {"tokens": STEPS * 2048, "batch_tokens": 2048, "workers": 1, "log_every": STEPS},
    }
)


class InTheStep(Ahead):
    """Reads a batch when it is asked for."""

    def take(self, step: int) -> Any:
        return self.make(step)


class Lines:
    """Keeps the share of the time that was waited for batches."""

    def __init__(self) -> None:
        self.reading: list[float] = []

    def log(self, step: int, **values: Any) -> None:
        self.reading.append(values["time_reading"])

    def truncate_after(self, step: int) -> None:
        return None


def write_windows(folder: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, WINDOWS * (WINDOW + 1)).astype(np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens), WINDOW + 1)
    pq.write_table(pa.table({"tokens": column}), folder / "part-00000.parquet")


def reading(folder: Path) -> None:
    """Share of the loop's time that is waiting for a batch, read ahead and in the step."""
    windows = map_windows([folder / "part-00000.parquet"])
    arms = {"a batch ahead": Ahead, "in the step": InTheStep}
    shares: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, kind in arms.items():
            batches.Ahead = kind
            sampler = CurriculumSampler(np.zeros(WINDOWS), RECIPE.batch_windows, STEPS, start=1.0)
            data, lines = WindowData(windows, np.empty((0, WINDOW + 1), dtype=np.int32)), Lines()
            train(build_model(RECIPE.model, VOCABULARY), data, sampler, RECIPE, reporter=lines)
            shares[name] += lines.reading
    for name, values in shares.items():
        print(f"waiting, {name:<14} {100 * statistics.median(values):.2f} % of the time")


def checkpoints(folder: Path) -> None:
    """How long a checkpoint holds the loop up, written behind it and in it."""
    model = build_model(RECIPE.model, VOCABULARY)
    optimizer = build_optimizer(model, RECIPE.training)
    model(torch.zeros(1, WINDOW, dtype=torch.int64)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saver, ratios, held = Checkpointer(folder / "checkpoints", "loop"), [], []
    for number in range(SAVES):
        began = time.perf_counter()
        saver.save(2 * number, state)
        written = time.perf_counter()
        saver.save_behind(2 * number + 1, state)
        held.append(time.perf_counter() - written)
        ratios.append(held[-1] / (written - began))
        saver.wait()
    size = (saver.directory / f"step-{2 * SAVES - 1:08d}" / "state.pt").stat().st_size / (1 << 20)
    print(
        f"checkpoint of {size:.0f} MiB, written behind: {1e3 * statistics.median(held):.0f} ms in the loop, "
        f"{statistics.median(ratios):.2f} of writing it there"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        write_windows(Path(temporary))
        reading(Path(temporary))
        checkpoints(Path(temporary))
