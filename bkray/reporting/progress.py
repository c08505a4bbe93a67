"""Progress for people: one live line a stage on a terminal, one finished line a stage elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.status import Status

_PLAIN_WIDTH = 160  # columns off a terminal
_QUIET_INTERVAL_S = 30.0  # off a terminal, a long stage still says so often that it is alive
_TICK_S = 1.0  # how often the seconds of a line are brought up to date


class Line:
    """The line of one stage."""

    def __init__(self, console: Console, name: str, status: Status | None) -> None:
        self._console, self._name, self._status = console, name, status
        self._started = self._said = time.monotonic()
        self._text = ""
        self.result = ""

    def update(self, text: str) -> None:
        """Say how far the stage is."""
        self._text = text
        if self._status is not None:
            self.refresh()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False)

    def refresh(self) -> None:
        """Show the seconds that have passed; off a terminal say from time to time how far the stage is."""
        now = time.monotonic()
        if self._status is not None:
            self._status.update(f"{self._name:<13} {self._text}  {self.seconds:.0f} s")
        elif now - self._said >= _QUIET_INTERVAL_S:
            self._said = now
            self.say(f"  {self._name}: {self._text or f'at work for {self.seconds:.0f} s'}")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


class Progress:
    """Prints to `console`; a stage's line is live only where the console is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, width=None if sys.stderr.isatty() else _PLAIN_WIDTH)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Line]:
        """A stage from start to end; what it sets as `result` is kept on the finished line."""
        with self.console.status(name) if self.console.is_terminal else nullcontext() as status:
            line = Line(self.console, name, status)
            with _refreshed(line):
                yield line
        self.say(f"✓ {name:<13} {line.result}  ({line.seconds:.1f} s)")


@contextmanager
def _refreshed(line: Line) -> Iterator[None]:
    """Refresh the line again and again, whatever the stage is doing."""
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_TICK_S):
            line.refresh()

    thread = threading.Thread(target=refresh, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
