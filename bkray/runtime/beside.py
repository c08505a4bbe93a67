"""Ray's `fit` beside the main thread, which meanwhile shows progress."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import ray
from ray._private import state, worker

T = TypeVar("T")

POLL_S = 1.0
_LEAVE_S = 10.0


def run_beside(call: Callable[[], T], show: Callable[[], None], end: Callable[[], None]) -> T:
    """Run `call` in a thread of its own and `show` every second until it is done; its result or exception.

    In the main thread Ray's `fit` takes SIGINT over and ends the process its own way. Where the main thread
    is interrupted, `end` has to end the call: Ray crashes where it is shut down while a thread waits in it.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while not wait([outcome], timeout=POLL_S).done:
            show()
    except BaseException:
        ending = threading.Thread(target=end, daemon=True)  # without Ray's GCS it would wait for ever
        ending.start()
        ending.join(_LEAVE_S)
        wait([outcome], timeout=_LEAVE_S)
        raise
    return outcome.result()


def end_actors() -> None:
    """End the actors that this process has made, which end theirs, and so the calls that wait for them."""
    driver: Any = worker.global_worker
    for actor in state.actors(job_id=driver.current_job_id, actor_state_name="ALIVE"):
        with contextlib.suppress(ray.exceptions.ActorHandleNotFoundError):  # made by another
            driver.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)
