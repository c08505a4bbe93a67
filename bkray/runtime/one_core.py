"""How a worker that computes with a model is set up."""

from __future__ import annotations

import ctypes
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MOST = -1, -3, (1 << 31) - 1  # malloc.h of glibc; bytes


def work_on_one_core() -> None:
    """Compute with one thread, and keep freed memory in this process.

    A core a worker: more cores are used by more workers, and bits stay the same. A small model's step spends
    a third of its time on page faults where glibc hands its memory back after every step and asks for it
    again. Other workers should not keep theirs: what a sort or a spill has held would stay with them.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_TRIM_THRESHOLD, _MOST)
            libc.mallopt(_MMAP_THRESHOLD, _MOST)
