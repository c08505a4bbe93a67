"""From exceptions to exit codes: 0 done, 2 what the user can mend, 1 a fault of ours, 130 interrupted."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from bkray.config import UserError


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what the block raises into a message and an exit code; SIGTERM is taken like Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _say("interrupted; what is finished is kept: run the same command again to go on")
        raise SystemExit(130) from None
    except Exception as error:
        if (mendable := find_user_error(error)) is not None:
            _say(f"error: {mendable}")
            raise SystemExit(2) from None
        traceback.print_exc()
        _say("this is a fault of bkray, not of your recipe: please report it with the lines above")
        raise SystemExit(1) from None


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError behind `error`, through causes and what Ray wraps around a worker's exception.

    A full disk is one, whoever met it, and so is a process or a machine that was lost too often, or a stage
    of data that stands still.
    """
    from ray import exceptions as ray  # late: a mere --help need not wait for ray

    data = sys.modules.get("ray.data.exceptions")  # where it is not imported it has raised nothing
    lost = ray.WorkerCrashedError, ray.OutOfMemoryError, ray.NodeDiedError, ray.LocalRayletDiedError
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, UserError) and not isinstance(current, ray.RayTaskError):
            return current  # Ray's own class of both says it with the worker's traceback
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"{_said(current)}: free some space and run the same command again")
        if isinstance(current, lost):
            first, *_ = str(current).partition("\n")
            return UserError(
                f"{type(current).__name__}: {first} What is finished is kept: run the same command again to "
                "go on; where memory ran out, close other programs or set --cpus lower"
            )
        if data and isinstance(current, data.ExecutionTimeoutError):
            return stood_still("a stage")
        waiting += [
            getattr(current, name, None) for name in ("cause", "__cause__", "__context__", "_base_exc")
        ]
        waiting += list(getattr(current, "worker_failures", {}).values())
    return None


def stood_still(stage: str) -> UserError:
    """What Ray Data's ExecutionTimeoutError means: in `stage` no block was done for so long.

    Where a machine is lost, actors that start again on the others may leave no CPU to what they wait for.
    """
    from ray.data import DataContext

    seconds = DataContext.get_current().execution_no_progress_timeout_s
    return UserError(
        f"{stage}: not one block of rows was done in {seconds:g} s, so it was given up. Mostly a machine was "
        "lost, and those that are left have no free CPU for its work: what is finished is kept, run the same "
        "command again to go on. Where the stage stands still again, a block takes longer than that, as a "
        "window of a very large model or a very long document does (take a smaller model, set window or "
        "cleaning.max_chars lower), or other programs take the CPUs"
    )


def _said(error: OSError) -> str:
    """The error and its file; where it has none, Ray Data's advice on retries stands in its place."""
    name = f": {error.filename!r}" if error.filename and "\n" not in str(error.filename) else ""
    return f"[Errno {error.errno}] {error.strerror}{name}"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
