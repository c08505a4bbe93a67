"""Ray's `fit` beside the main thread, which meanwhile shows progress."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")

POLL_S = 1.0


def run_beside(call: Callable[[], T], show: Callable[[], None]) -> T:
    """Run `call` in a thread of its own and `show` every second until it is done; its result or exception.

    In the main thread Ray's `fit` takes SIGINT over and ends the process its own way.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while not wait([outcome], timeout=POLL_S).done:
        show()
    return outcome.result()
