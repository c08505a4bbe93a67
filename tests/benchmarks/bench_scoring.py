"""What Ray Data adds to scoring: python tests/benchmarks/bench_scoring.py [WINDOWS] [ROUNDS]

WINDOWS (4096; half for the larger model) of 256 tokens of Python source, by a proxy (d = 64, 2 layers)
and by a model of the default size (d = 192, 4 layers), windows a second, one thread a process:

- as people write it: a loop without Ray in one process: batches of 16 windows, cross-entropy, float32;
- one process: the same in a process that keeps freed memory, as the stage's actors do, which is faster;
- score_windows: such a process with what an actor computes of the model, still float32;
- side by side: as many of the second at once as there are cores: what the machine can do at all;
- scored: the stage's own actors on all cores (compression ratio and loss, written as columns), from the
  moment when the last one is ready to the last window; in float32, and as the stage chooses by itself.

The arms take turns within each round. Ratios are to cores x `one process` (to reach: 0.9), the median over
the rounds. The start of the actors is not in them and is printed beside.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional as F

from bkray.config import Recipe, parse_recipe
from bkray.corpus import train_tokenizer
from bkray.difficulty import score_windows, scoring_dtype
from bkray.model import build_model
from bkray.runtime.cluster import TASK_CPUS, cluster, local_cpus
from bkray.runtime.one_core import work_on_one_core
from bkray.runtime.scoring import Scorer, _Score
from bkray.runtime.stages import actors, map_tables, read_parts, windows_a_block
from bkray.training import export_model, load_model

WINDOW, VOCABULARY, BATCH = 256, 4096, 16
MODELS = {"proxy, d = 64, 2 layers": (64, 2, 1), "d = 192, 4 layers": (192, 4, 2)}
"""Width, layers, and by how much there are fewer windows."""


def recipe_of(width: int, layers: int) -> Recipe:
    model = {"kind": "resnet_bk", "d_model": width, "n_layers": layers}
    values = {"name": "bench", "corpus": {"kind": "docstrings"}, "window": WINDOW, "model": model}
    return parse_recipe({**values, "difficulty": {"kind": "loss"}, "curriculum": {}})


def source_windows(folder: Path, count: int) -> np.ndarray:
    """Windows (W, N + 1) of numpy's source, and `tokenizer.json` in `folder`."""
    texts = [path.read_text(errors="ignore") for path in sorted(Path(np.__file__).parent.rglob("*.py"))]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokenizer.save(str(folder / "tokenizer.json"))
    stream = np.concatenate([encoding.ids for encoding in tokenizer.encode_batch(texts)]).astype(np.int32)
    return np.resize(stream, (count, WINDOW + 1))


@torch.no_grad()
def plain_loop(model: nn.Module, tokens_WN1: np.ndarray) -> None:
    """The loop that people write."""
    for batch in torch.from_numpy(tokens_WN1).long().split(BATCH):
        logits_BNV = model(batch[:, :-1])
        F.cross_entropy(logits_BNV.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")


def rate(score: Callable[..., object], model: nn.Module, tokens_WN1: np.ndarray) -> float:
    """Windows a second."""
    start = time.perf_counter()
    score(model, tokens_WN1)
    return len(tokens_WN1) / (time.perf_counter() - start)


def side_by_side(
    score: Callable[..., object], exported: Path, tokens_WN1: np.ndarray, processes: int
) -> float:
    """Windows a second of so many processes at once that keep freed memory, in all."""
    context = multiprocessing.get_context("spawn")
    held = (context.Barrier(processes), score, exported, tokens_WN1)
    with context.Pool(processes, _hold, held) as pool:
        return sum(pool.map(_held_rate, range(processes), chunksize=1))


_held: list = []


def _hold(*parts: object) -> None:
    _held.extend(parts)


def _held_rate(_: int) -> float:
    barrier, score, exported, tokens_WN1 = _held
    work_on_one_core()
    model = load_model(exported)
    score(model, tokens_WN1[:BATCH])
    barrier.wait()
    return rate(score, model, tokens_WN1)


class _Noted(_Score):
    """The stage's actor, which notes when it scored what."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        score_windows(self.model, np.zeros((2, WINDOW + 1), dtype=np.int32), dtype=scorer.dtype)

    def __call__(self, table: pa.Table) -> pa.Table:
        begin = time.time()
        super().__call__(table)
        rows, ended = table.num_rows, time.time()
        return pa.table({"rows": [rows], "begin": [begin], "end": [ended], "actor": [os.getpid()]})


def scored(part: Path, scorer: Scorer, cores: int, starts: list[float]) -> float:
    """Windows a second once every actor scores; the seconds before that go to `starts`."""
    block = windows_a_block(scorer.flops(), together=scorer.windows_a_pass())
    start = time.time()
    dataset = map_tables(
        read_parts([part]).repartition(target_num_rows_per_block=block),
        _Noted,
        TASK_CPUS,
        fn_constructor_args=(scorer,),
        compute=actors(cores, pq.read_metadata(part).num_rows, block),
        batch_size=None,
    )
    done = dataset.to_pandas()
    ready = done.groupby("actor")["begin"].min().max()
    starts.append(float(ready - start))
    # a batch that an actor was in the middle of when the last one was ready counts for its later part
    share = ((done["end"] - ready) / (done["end"] - done["begin"])).clip(0, 1)
    return float((share * done["rows"]).sum() / (done["end"].max() - ready))


def compare(title: str, folder: Path, tokens: np.ndarray, recipe: Recipe, rounds: int, cores: int) -> None:
    torch.manual_seed(0)
    exported = folder / "model"
    model = build_model(recipe.model, VOCABULARY).eval()
    export_model(exported, model, recipe, folder / "tokenizer.json", VOCABULARY, {})
    ids = pa.array(np.arange(len(tokens)))
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), WINDOW + 1)
    part = folder / "part-00000.parquet"
    pq.write_table(pa.table({"window_id": ids, "tokens": column}), part)
    scorer = Scorer(recipe, ("compression", "loss"), folder / "tokenizer.json", exported, None, None)
    one, starts = tokens[: max(BATCH, len(tokens) // 8)], list[float]()
    in_full = partial(score_windows, dtype=torch.float32)
    arms: dict[str, Callable[[], float]] = {
        "as people write it": partial(rate, plain_loop, model, one),
        "one process": partial(side_by_side, plain_loop, exported, one, 1),
        "score_windows": partial(side_by_side, in_full, exported, one, 1),
        "side by side": partial(side_by_side, plain_loop, exported, one, cores),
    }
    for dtype in dict.fromkeys((torch.float32, scoring_dtype(torch.device("cpu")))):
        name = f"scored, {str(dtype).removeprefix('torch.')}"
        arms[name] = partial(scored, part, replace(scorer, dtype=dtype), cores, starts)
    plain_loop(model, one[:BATCH])
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            rates[name].append(arm())
    print(
        f"{title}: windows a second, ratio to {cores} x one process, medians of {rounds} rounds", flush=True
    )
    for name, values in rates.items():
        whole = cores if name in ("as people write it", "one process", "score_windows") else 1
        ratios = [
            whole * value / (cores * base) for value, base in zip(values, rates["one process"], strict=True)
        ]
        print(f"  {name:18} {statistics.median(values):8.1f}   x {statistics.median(ratios):.2f}", flush=True)
    print(f"  start of the actors {statistics.median(starts):.1f} s, not in the figures", flush=True)


def main(count: int, rounds: int) -> None:
    torch.set_num_threads(1)
    cores = local_cpus()
    with tempfile.TemporaryDirectory() as folder, cluster(cores):
        tokens = source_windows(Path(folder), count)
        for title, (width, layers, fewer) in MODELS.items():
            compare(title, Path(folder), tokens[::fewer], recipe_of(width, layers), rounds, cores)


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    main(*(given + [4096, 3][len(given) :]))
