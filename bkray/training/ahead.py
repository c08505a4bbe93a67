"""The next batch is made in a thread of its own while this one is trained on.

step t:      take(t) ─► forward, backward, update ─► take(t + 1), which is there already
the thread:             make(t + 1)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What `make(step)` gives, for the steps below `end`, asked for in order.

    `make` is never called by two threads at once. Whoever changes what it depends on calls `drop` first.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self.make, self.end = make, end
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._made: tuple[int, Future[T]] | None = None

    def take(self, step: int) -> T:
        """What was made for `step`, or is made now; raises what `make` raises."""
        if self._made is None or self._made[0] != step:
            self.drop()
            self._begin(step)
        assert self._made is not None
        made = self._made[1].result()
        self._made = None
        if step + 1 < self.end:
            self._begin(step + 1)
        return made

    def drop(self) -> None:
        """Forget what was made ahead; when this returns, nothing is being made."""
        if self._made is not None:
            wait([self._made[1]])
            self._made = None

    def _begin(self, step: int) -> None:
        self._made = (step, self._executor.submit(self.make, step))
