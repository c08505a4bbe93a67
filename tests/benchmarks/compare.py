"""What the benchmarks share: arms that take turns, and medians; the memory of a tree of processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import psutil
import torch

Arm = Callable[[], object]


def medians(arms: dict[str, Arm], rounds: int) -> dict[str, tuple[float, float]]:
    """Of every arm the median seconds, and the median of its ratio to the first arm within a round.

    The arms take turns within each round, after one run that compiles and warms up: on a shared machine trust
    the ratios.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            _wait()
            times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    return {
        name: (
            statistics.median(values),
            statistics.median(value / base for value, base in zip(values, first, strict=True)),
        )
        for name, values in times.items()
    }


def compare(title: str, arms: dict[str, Arm], rounds: int = 15) -> None:
    """Print the median milliseconds of every arm, and its median ratio to the first."""
    print(title, flush=True)
    for name, (seconds, ratio) in medians(arms, rounds).items():
        print(f"  {name:28} {1e3 * seconds:8.2f} ms   x {ratio:.2f}", flush=True)


def with_threads(count: int, arm: Arm) -> Arm:
    def run() -> None:
        torch.set_num_threads(count)
        arm()
        torch.set_num_threads(1)

    return run


def held_bytes(process: psutil.Process) -> int:
    """Bytes that a process and all below it hold, shared pages once."""
    held = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            held += each.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return held


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
