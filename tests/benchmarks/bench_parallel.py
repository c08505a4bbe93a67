"""What the ways of training on several ranks cost: python tests/benchmarks/bench_parallel.py [ROUNDS] [RANKS]

ResNetBK, d = 192, 4 layers, V = 4096, 4 windows of 256 tokens a rank, one thread a rank, gloo. All arms take
turns within the same processes; printed are ratios of whole steps to ddp's, the state that a rank keeps, and
how much of the communication lies behind the computation:

    hidden = (computation + communication - pass) / communication

of a forward and backward pass, the same under ddp's `no_sync`, and the time in which a collective was under
way, from torch.profiler.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from bkray.config import Recipe, parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData, interleaved_step_seconds
from bkray.training.loop import TrainingRun
from bkray.training.optimization.optimizers import optimizers_of
from bkray.training.parallel.shares import local
from bkray.training.parallel.zero1 import ShardedOptimizer

WINDOW, WINDOWS_A_RANK, VOCABULARY = 256, 4, 4096
ARMS = {
    "ddp": {},
    "zero1": {"parallel": "zero1"},
    "fsdp2": {"parallel": "fsdp2"},
    "ddp, buckets of 1 MiB": {"bucket_mb": 1},
    "ddp, buckets of 4 MiB": {"bucket_mb": 4},
    "ddp, gradients copied": {"gradient_as_bucket_view": False},
    "ddp, fp16": {"gradient_compression": "fp16"},
    "ddp, bf16": {"gradient_compression": "bf16"},
    "ddp, powersgd, rank 4": {"gradient_compression": {"kind": "powersgd", "start": 0.0}},
    "ddp, 4 micro-batches": {"accumulate": 4},
}


def recipe(ranks: int, training: dict) -> Recipe:
    batch = ranks * WINDOWS_A_RANK * WINDOW
    given = {"workers": ranks, "batch_tokens": batch, "tokens": 10_000 * batch, **training}
    return parse_recipe(
        {"name": "bench", "corpus": {"kind": "docstrings"}, "window": WINDOW, "training": given}
    )


def model(settings: Recipe) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(settings.model, VOCABULARY)


def inputs(ranks: int) -> tuple[WindowData, CurriculumSampler]:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (64, WINDOW + 1)).astype(np.int32)
    return WindowData(tokens, tokens[:0]), CurriculumSampler(np.zeros(64), ranks * WINDOWS_A_RANK, 10_000)


def state_mib(settings: Recipe, ranks: int) -> float:
    run = TrainingRun(model(settings), *inputs(ranks), settings, None, Ledger(), None)
    run.train_step()
    whole = run.optimizer
    parts = whole.locals if isinstance(whole, ShardedOptimizer) else optimizers_of(whole)
    tensors = [t for one in parts for state in one.state.values() for t in state.values()]
    return sum(local(tensor).nbytes for tensor in tensors) / 2**20


def hidden(settings: Recipe, ranks: int, rounds: int) -> tuple[float, float, float]:
    """Seconds of a pass without and with communication, and those in which a collective was under way.

    The two take turns, and both are profiled, which costs time as well.
    """
    run = TrainingRun(model(settings), *inputs(ranks), settings, None, Ledger(), None)
    sharded, plain = (
        settings.training.parallel == "fsdp2",
        recipe(ranks, {}),
    )  # what is sharded cannot but send
    unsent = TrainingRun(model(plain), *inputs(ranks), plain, None, Ledger(), None) if sharded else run
    for each in (run, unsent):
        each.train_step()
        each.train_step()
    passes: dict[bool, list[float]] = {False: [], True: []}
    under_way = []
    for number in range(2 * rounds):
        sends = number % 4 in (1, 2)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            passes[sends].append(seconds(run if sends else unsent, sends))
        if sends:
            under_way.append(covered(profiler))
    alone, together = (statistics.median(passes[sends]) for sends in (False, True))
    return alone, together, statistics.median(under_way)


def seconds(run: TrainingRun, sends: bool) -> float:
    dist.barrier()
    batch, start = run.draw(), time.perf_counter()
    with nullcontext() if sends else run.parallel.accumulating():
        run.backward(batch)
    passed = time.perf_counter() - start
    run.optimizer.zero_grad(set_to_none=True)
    return passed


def covered(profiler: profile) -> float:
    """Seconds in which at least one collective of gloo was under way."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.name.startswith("gloo:")
    )
    total, reached = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def work(rank: int, ranks: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    say = print if rank == 0 else lambda *_, **__: None
    recipes = {name: recipe(ranks, training) for name, training in ARMS.items()}
    data, sampler = inputs(ranks)
    arms = {name: (model(settings), settings) for name, settings in recipes.items()}
    times = interleaved_step_seconds(arms, dict.fromkeys(arms, data), sampler, rounds)
    for name, values in times.items():
        ratio = statistics.median(value / base for value, base in zip(values, times["ddp"], strict=True))
        say(f"  {name:24} {1e3 * statistics.median(values):8.1f} ms   x {ratio:.2f}", flush=True)
    for name in ("ddp", "zero1", "fsdp2"):
        say(f"  {name:24} {state_mib(recipes[name], ranks):8.2f} MiB of optimizer state a rank", flush=True)
    small = ("ddp, buckets of 1 MiB", "ddp, buckets of 4 MiB")
    for name in ("ddp", "zero1", "fsdp2", *small, "ddp, fp16", "ddp, bf16"):
        alone, together, under_way = hidden(recipes[name], ranks, rounds)
        share = (alone + under_way - together) / under_way
        say(
            f"  {name:24} pass {1e3 * together:.1f} ms, computation {1e3 * alone:.1f}, "
            f"communication {1e3 * under_way:.1f}: {share:.2f} hidden",
            flush=True,
        )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    turns, size = (int(value) for value in (*sys.argv[1:], *("7", "2")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as shared:
        print(f"{size} ranks, {turns} rounds", flush=True)
        mp.spawn(work, (size, turns, str(Path(shared))), nprocs=size)
