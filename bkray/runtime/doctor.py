"""`bkray doctor`: what this machine offers, and whether every part that a run needs works on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
import torch

from bkray.model import spectral_mix
from bkray.runtime.cluster import available_memory, cluster, local_cpus
from bkray.runtime.results import versions


def examine() -> int:
    """Print one line a check; return 0 where all hold and 2 where one does not."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", lambda: ", ".join(f"{name} {number}" for name, number in versions().items())),
        ("cores", lambda: f"{local_cpus()} of {os.cpu_count()} may be used"),
        ("memory", lambda: f"{available_memory() / (1 << 30):.1f} GiB available"),
        ("disk", lambda: f"{shutil.disk_usage(Path.cwd()).free / (1 << 30):.1f} GiB free in this folder"),
        ("accelerator", _accelerator),
        ("kernels", _kernels),
        ("ray", _ray),
        (
            "browser",
            lambda: shutil.which("chromium") or "no chromium: the report opens in any browser of yours",
        ),
    ]
    failed = 0
    for name, check in checks:
        try:
            print(f"✓ {name:<12} {check()}")
        except Exception as error:
            failed += 1
            print(f"✗ {name:<12} {type(error).__name__}: {error}")
    return 2 if failed else 0


def _accelerator() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none, training runs on the CPU"


def _kernels() -> str:
    """The compiled scan against the plain one."""
    f, omega, x = (torch.rand(2, 33, 8) * 0.9 + 0.05 for _ in range(3))
    fast, slow = (spectral_mix(f, omega, x, backend=backend) for backend in ("numba", "reference"))
    np.testing.assert_allclose(fast.numpy(), slow.numpy(), atol=1e-5)
    return "numba agrees with the reference"


def _ray() -> str:
    with cluster() as cpus:
        squares = ray.data.range(8).map_batches(lambda batch: {"square": batch["id"] ** 2}).sum("square")
        assert squares == sum(n * n for n in range(8)), squares
        return f"starts with {cpus} CPUs and runs a data stage"
