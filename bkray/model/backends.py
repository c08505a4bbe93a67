"""Which code runs an operation, and on how many threads.

resolvent.py ─┐                    ┌─► torch loop over N ("reference": any device, any real dtype)
spectral.py  ─┼─► choose_backend ──┤
convolution.py┘                    └─► kernels.py ("numba": CPU, float32 and float64)
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from bkray.config import UserError

BACKENDS = ("reference", "numba")
CHUNK = 256
"""Channels that a kernel takes at a time: enough to vectorise; fixed, so that threads change no result."""

_log = logging.getLogger("bkray.model")


def choose_backend(backend: str, tensor: torch.Tensor) -> str:
    """The backend that runs an operation on `tensor`: `backend` itself, or for "auto" the fastest that can.

    Raises UserError where the name is unknown or that backend cannot take this device or dtype.
    """
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"backend {backend!r} is unknown: choose auto, {' or '.join(BACKENDS)}")
    obstacle = _numba_obstacle(tensor.device.type, tensor.dtype)
    if backend == "auto":
        return _announce("reference" if obstacle else "numba", tensor.device.type, tensor.dtype)
    if backend == "numba" and obstacle:
        raise UserError(
            f"backend 'numba' is not available: {obstacle}. Choose auto or one of {', '.join(BACKENDS)}"
        )
    return backend


def _numba_obstacle(device: str, dtype: torch.dtype) -> str | None:
    if not _has_numba():
        return "the package numba is not installed"
    if device != "cpu" or dtype not in (torch.float32, torch.float64):
        return f"it runs float32 and float64 on the CPU, not {dtype} on {device}"
    return None


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _announce(backend: str, device: str, dtype: torch.dtype) -> str:
    _log.info("backend auto on %s %s: %s", device, dtype, backend)
    return backend


def run_kernel(kernel: Callable[..., None], first: torch.Tensor, *others: torch.Tensor | bool) -> None:
    """Run a kernel of `kernels.py` over all (batch, chunk of channels) items of `first` (B, N, C).

    The items are independent and are shared out over `torch.get_num_threads()` threads. The kernels release
    the GIL; numba's own threading layer is not used, because it may not be entered from two threads at once.
    """
    arguments = [item.numpy() if isinstance(item, torch.Tensor) else item for item in (first, *others)]
    batch, _, channels = first.shape
    items = batch * -(-channels // CHUNK)
    threads = max(1, min(torch.get_num_threads(), items))
    bounds = np.linspace(0, items, threads + 1).astype(np.int64).tolist()
    own, *rest = itertools.pairwise(bounds)
    futures = [_pool(os.getpid(), threads).submit(kernel, *part, CHUNK, *arguments) for part in rest]
    kernel(*own, CHUNK, *arguments)
    for future in futures:
        future.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Keyed by process, because threads do not survive a fork."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix=f"bkray-kernel-{process}")
