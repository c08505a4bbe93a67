"""What the log says of the steps since its last line: where the time went, memory, utilisation.

reading      waiting for the next batch
forward
backward     with DDP's exchange of gradients
optimizer    clipping, update, checks, schedule
validation
checkpoint   copying the state, waiting for the write before
other        what is left of the time between two lines
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_HOST, _DEVICE = 512, 4096  # rows of the matrix whose square is timed: a few ms
_REPEATS = 5


class PhaseClock:
    """Adds up the time of phases; on a GPU by events, so that it never waits for one but in `shares`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self._started = time.perf_counter()
        self._host: dict[str, float] = defaultdict(float)
        self._device: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time of the host that counts as `name`; phases do not lie in each other."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._host[name] += time.perf_counter() - began

    @contextmanager
    def device_phase(self, name: str) -> Iterator[None]:
        """Time of the device: on the host what `phase` is."""
        if self.device.type != "cuda":
            with self.phase(name):
                yield
            return
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        self._device.append((name, began, ended))

    def shares(self) -> dict[str, float]:
        """The share of every phase, and of `other`, in the time since the last call; together 1."""
        if self._device:
            torch.cuda.synchronize(self.device)
        spent = dict(self._host)
        for name, began, ended in self._device:
            spent[name] = spent.get(name, 0.0) + began.elapsed_time(ended) / 1e3
        total = max(time.perf_counter() - self._started, sum(spent.values()), 1e-9)
        self.restart()
        shares = {name: seconds / total for name, seconds in spent.items()}
        return {**shares, "other": max(0.0, 1.0 - sum(shares.values()))}


@functools.cache
def peak_flops(device: torch.device, precision: str, threads: int) -> float:
    """FLOP/s of a square matrix product in this precision on this device: the best of five, timed once.

    `threads` is what torch.get_num_threads() says; draws nothing from the global random state.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = _DEVICE if device.type == "cuda" else _HOST
    values = torch.rand(rows, rows, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best = float("inf")
    for _ in range(1 + _REPEATS):  # the first warms up
        finish(device)
        began = time.perf_counter()
        torch.mm(values, values)
        finish(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * rows**3 / best


def memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process holds, without mapped files; on a GPU also the most since the last call."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = [int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem")]
    used = {"memory_bytes": sum(held)}
    if device.type == "cuda":
        used["device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    return used


def finish(device: torch.device) -> None:
    """Wait for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
