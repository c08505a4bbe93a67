"""Which code runs an operation, and on how many threads.

resolvent.py ─┐                    ┌─► kernels/           "numba": CPU; one fused pass each way
spectral.py  ─┼─► choose_backend ──┼─► triton_kernels.py  "triton": CUDA; one fused pass each way
mixing.py    ─┤                    ├─► recurrences.py     "chunked": torch, any device; about 3 sqrt(N) steps
convolution.py┘                    └─► recurrences.py     "reference": torch, any device; a loop over N
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import logging
import os
from collections.abc import Callable

import numpy as np
import torch

from bkray.config import UserError

BACKENDS = ("reference", "chunked", "numba", "triton")
WIDE, NARROW = 256, 32
"""Channels that a kernel takes at a time: long rows are what memory likes; narrower, to the least, where the
wide ones are not shared out evenly among the threads. No result depends on it, for what a channel computes
does not."""
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("numba", "triton")}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs its kernels on the CPU, for tests; triton reads the variable once, as here."""

_log = logging.getLogger("bkray.model")


def choose_backend(backend: str, tensor: torch.Tensor) -> str:
    """The backend that runs an operation on `tensor`: `backend` itself, or for "auto" the fastest that can.

    Raises UserError where the name is unknown or that backend cannot take this device or dtype.
    """
    device, dtype = tensor.device.type, tensor.dtype
    if backend == "auto":
        fast = "triton" if device == "cuda" else "numba"
        obstacle = _obstacle(fast, device, dtype)
        chosen = "chunked" if obstacle else fast
        if not torch.compiler.is_compiling():  # a log line would break the graph
            _announce(chosen, device, dtype, f" ({fast}: {obstacle})" if obstacle else "")
        return chosen
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown: choose auto, {', '.join(BACKENDS)}")
    obstacle = _obstacle(backend, device, dtype)
    if obstacle:
        raise UserError(f"backend {backend!r} is not available: {obstacle}; or choose auto")
    return backend


def _obstacle(backend: str, device: str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run here, and what would mend it."""
    if backend not in INSTALLED:
        return None
    if not INSTALLED[backend]:
        return f"the package {backend} is not installed (pip install {backend})"
    home = "cuda" if backend == "triton" and not INTERPRETED else "cpu"
    if device != home or dtype not in (torch.float32, torch.float64):
        return f"it runs float32 and float64 on {home}, not {dtype} on {device}: move the tensors"
    return None


@functools.cache
def _announce(backend: str, device: str, dtype: torch.dtype, why: str) -> None:
    _log.info("backend auto on %s %s: %s%s", device, dtype, backend, why)


def forget_announced() -> None:
    """Let the next choice be logged again: every run notes its own."""
    _announce.cache_clear()


def run_kernel(
    kernel: Callable[..., None],
    first: torch.Tensor,
    *others: torch.Tensor | float,
    group: int = 1,
    groups: int | None = None,
) -> None:
    """Run a kernel of `kernels/` over all (batch, chunk of channels) items of `first` (B, N, C).

    A chunk holds whole groups of `group` channels, as many as `groups` says, or as serve the threads best.
    The items are independent and are shared out over `torch.get_num_threads()` threads.
    """
    arguments = [item.numpy() if isinstance(item, torch.Tensor) else item for item in (first, *others)]
    batch, _, channels = first.shape
    threads = torch.get_num_threads()
    chunk = group * (groups or _groups(batch, -(-channels // group), group, threads))
    items = batch * -(-channels // chunk)
    threads = max(1, min(threads, items))
    bounds = np.linspace(0, items, threads + 1).astype(np.int64).tolist()
    _share_out([functools.partial(kernel, *part, chunk, *arguments) for part in itertools.pairwise(bounds)])


def _groups(batch: int, groups: int, group: int, threads: int) -> int:
    """Groups a chunk: the fewest chunks that share the items of all batch rows evenly among the threads."""
    fewest = -(-groups // max(1, WIDE // group))
    most = max(fewest, groups // max(1, NARROW // group))
    chunks = (n for n in range(fewest, most + 1) if batch * n % threads == 0 or batch * n >= 4 * threads)
    return -(-groups // next(chunks, most))


def _share_out(calls: list[Callable[[], None]]) -> None:
    """Run the calls, which release the GIL, on the OpenMP threads that torch's own operators use.

    These wait for work without sleeping, so that other threads would have to share the cores with them. And
    numba's threading layer may not be entered from two threads at once.
    """
    openmp = _openmp() if len(calls) > 1 and os.getpid() == _PROCESS else None
    if openmp is None:
        for call in calls:
            call()
        return
    failed: list[BaseException] = []
    done: list[None] = []

    def run(_: int | None) -> None:
        try:
            for call in calls[openmp.omp_get_thread_num() :: openmp.omp_get_num_threads()]:
                call()
                done.append(None)
        except BaseException as error:  # ctypes would print and forget it
            failed.append(error)

    # All of torch's threads: with fewer the others would end, and be started again by torch's next operator.
    openmp.GOMP_parallel(_OpenMPFunction(run), None, torch.get_num_threads(), 0)
    if failed:
        raise failed[0]
    if len(done) < len(calls):  # a signal came just before the `try`
        raise KeyboardInterrupt


_OpenMPFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


_PROCESS = os.getpid()  # OpenMP's threads do not survive a fork


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded; None where it is not GNU's or compatible with it."""
    loaded = ctypes.CDLL(None)
    if hasattr(loaded, "GOMP_parallel"):
        return loaded
    _log.warning("torch's OpenMP is not compatible with GNU's: the numba kernels run on one thread")
    return None
