"""The seconds of a stage over all of its attempts: those that a killed one spent are not lost to the ledger.

first attempt ─► .seconds-<stage>, rewritten every second ─► killed
second attempt ─► goes on counting from there ─► manifest.json
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


class Stopwatch:
    """Counts on from what an earlier attempt at `path` has left."""

    def __init__(self, path: Path) -> None:
        self._file = path.with_name(f".seconds-{path.name}")
        self._before = float(self._file.read_text()) if self._file.exists() else 0.0
        self._started = time.perf_counter()
        self._failed = False

    @property
    def seconds(self) -> float:
        """Seconds of all attempts so far."""
        return self._before + time.perf_counter() - self._started

    def note(self) -> None:
        """Write the seconds down, whole or not at all; where the disk takes none, say so once."""
        partial = self._file.with_name(f".partial-{self._file.name}")
        try:
            partial.write_text(repr(self.seconds))
            os.replace(partial, self._file)
        except OSError as error:  # no reason to fail: what is worth more fails by itself, and says what it is
            if not self._failed:
                logger.warning("the seconds of this attempt are not noted: %s", error)
            self._failed = True
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)


@contextmanager
def counting(path: Path) -> Iterator[Stopwatch]:
    """A stopwatch for the artifact at `path`, noted every second; forgotten once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    watch, done = Stopwatch(path), threading.Event()

    def keep_noting() -> None:
        while not done.wait(_INTERVAL_S):
            watch.note()

    noting = threading.Thread(target=keep_noting, daemon=True)
    noting.start()
    try:
        yield watch
    except BaseException:
        done.set()
        noting.join()
        watch.note()
        raise
    done.set()
    noting.join()
    watch.forget()
