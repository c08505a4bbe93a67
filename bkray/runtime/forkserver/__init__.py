"""Workers of a local Ray as forks of one process that has done their imports.

Ray starts every worker as a new Python that imports Ray twice, then torch and this package: seconds each, for
two dozen workers a run. `start_worker.py` stands in for Ray's `setup_worker.py`:

    a job's first worker ─► imports what workers use and becomes the fork server, which forks that worker too
    every other one ─► asks the server for a fork in its place, and ends

Nothing else of Ray's changes. Memory that the imports take is shared by all workers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


@contextmanager
def forked_workers() -> Iterator[None]:
    """Let a Ray that is started in this context fork its workers; on Linux: elsewhere forks are not safe."""
    if sys.platform != "linux":
        yield
        return
    parameter: Any = import_module("ray._private.parameter")  # Any: one of its classes is exchanged
    before = parameter.RayParams
    parameter.RayParams = partial(before, setup_worker_path=str(Path(__file__).with_name("start_worker.py")))
    try:
        yield
    finally:
        parameter.RayParams = before
