"""Start one Ray worker as a fork: Ray runs this file, with the arguments of its own `setup_worker.py`.

It runs by its path, before anything is imported, and so uses the standard library alone. Its name is another:
a file named as Ray's own is left out for workers without a runtime environment.

A fork server serves the workers of its own raylet and job only: Ray's C++ part reads both from the
environment when it is loaded. The raylet starts it as it starts every worker, so it hands on the folder, the
environment, the signal mask and the output. It has one thread: forks are safe. After its raylet it ends the
forks that are left: some of Ray's processes lock themselves up in their own end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

_IMPORTS = (
    "ray._private.workers.default_worker",
    "pydantic.v1.fields",  # Ray imports it when a worker connects
    "ray.data",
    "ray.data._internal.issue_detection",
    "ray.train.torch",
    "torch._dynamo",  # torch's optimizers import it when they are made
    "bkray.runtime.prepare",
    "bkray.runtime.scoring",
    "bkray.runtime.training",
    "bkray.model.kernels.mixing",
)
_NO_JOB = "f" * 8
_LOOK_S = 0.5  # how often the server looks whether its raylet still lives
_END_S = 10.0  # how long workers may take to end after their raylet


def main() -> None:
    """Become a worker or the fork server, or ask the server for a fork; else let Ray start the worker."""
    arguments, variables = _parse(sys.argv[1:])
    job = os.environ.get("RAY_JOB_ID", _NO_JOB)
    if variables is None or job == _NO_JOB:
        return _start_by_ray()
    raylet = next(each for each in arguments if each.startswith("--raylet-name="))
    address, request = f"{raylet.partition('=')[2]}-{job}", (arguments, variables)
    try:
        listener = _listen(address)
        if listener is None:
            return _ask(address, request)
    except OSError:  # too long an address, or its server has died
        return _start_by_ray()
    with listener:
        request = _serve(listener, request)
    return _work(*request)


def _start_by_ray() -> None:
    """Let Ray's own file start the worker."""
    (ray,) = find_spec("ray").submodule_search_locations  # type: ignore[union-attr,misc]
    path = str(Path(ray, "_private", "workers", "setup_worker.py"))
    os.execv(sys.executable, [sys.executable, path, *sys.argv[1:]])


def _parse(arguments: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """The worker's own arguments, and the variables of its runtime environment: None if it asks for more."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", type=json.loads, default={})
    parser.add_argument("--language", default="PYTHON")
    known, rest = parser.parse_known_args(arguments)
    context = dict(known.serialized_runtime_env_context)
    variables = context.pop("env_vars", {})
    plain = context.pop("py_executable", sys.executable) == sys.executable and not any(context.values())
    return rest, variables if plain and known.language == "PYTHON" else None


def _listen(address: str) -> socket.socket | None:
    """The listening socket of a new server; None where there is one. It gets its name when it listens."""
    listener, own = socket.socket(socket.AF_UNIX), f"{address}-{os.getpid()}"
    listener.bind(own)
    listener.listen(128)
    try:
        os.link(own, address)
    except FileExistsError:
        listener.close()
        return None
    finally:
        os.unlink(own)
    return listener


def _ask(address: str, request: tuple[list[str], dict[str, str]]) -> None:
    """Let the server fork a worker. Raises OSError where there is none any more."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        if not connection.recv(1):
            raise ConnectionResetError(address)


def _serve(
    listener: socket.socket, request: tuple[list[str], dict[str, str]]
) -> tuple[list[str], dict[str, str]]:
    """Fork a worker a request until the raylet has ended; returns in each fork, with its own request."""
    raylet = int(os.environ["RAY_RAYLET_PID"])  # whoever has adopted this process by now is none
    _import()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries ended workers
    listener.settimeout(_LOOK_S)
    while os.fork():
        request = _next(listener, raylet)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return request


def _import() -> None:
    """Import what workers use; of this package the copy that this file belongs to."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # Ray sets it in each worker: too late for what is loaded
    sys.path.insert(0, str(Path(__file__).parents[3]))
    gc.disable()  # looking for garbage takes a fifth of the time, and there is none
    for name in _IMPORTS:
        import_module(name)
    import_module("numba").njit(_nothing)()  # its first function takes it most of a second, others do not
    del sys.path[0]
    gc.freeze()
    gc.enable()


def _nothing() -> None:
    pass


def _next(listener: socket.socket, raylet: int) -> tuple[list[str], dict[str, str]]:
    """Wait for a request; ends the process when the raylet has ended."""
    while os.getppid() == raylet:
        with contextlib.suppress(OSError, ValueError):  # nobody has asked, or who did has died
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as sent:
                request = json.loads(sent.read())
                connection.sendall(b"+")
            return request
    listener.close()
    _end_forks()
    sys.exit()


def _end_forks() -> None:
    """Wait for the forks, whose raylet has ended; kill those that do not end by themselves."""
    deadline = time.monotonic() + _END_S
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    """The living children of this process, which has one thread; none where the kernel does not tell."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _work(arguments: list[str], variables: dict[str, str]) -> None:
    """Become the worker whose file is the first argument."""
    import numpy as np

    os.setpgid(0, 0)  # with a worker Ray ends its process group
    np.random.seed()  # not the server's: all workers would draw the same
    os.environ.update(variables)
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
