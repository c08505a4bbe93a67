"""The seconds of a stage over all of its attempts: those that a killed one spent are not lost to the ledger.

first attempt ─► .seconds-<stage>, rewritten every second ─► killed
second attempt ─► goes on counting from there ─► manifest.json

What a run's commands take outside of its stages is counted in the same way, and kept: .seconds-startup
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
    """Counts on from what an earlier attempt at `path` has left; this one began `earlier` seconds ago."""

    def __init__(self, path: Path, earlier: float = 0.0) -> None:
        self._file = _file(path)
        self._before = noted_seconds(path)
        self._running: tuple[float, float | None] = (time.perf_counter() - earlier, None)  # start, pause
        self._failed = False

    @property
    def seconds(self) -> float:
        """Seconds of all attempts so far, without the pauses."""
        started, paused = self._running
        return self._before + (paused or time.perf_counter()) - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in the block is not counted."""
        (started, _), paused = self._running, time.perf_counter()
        self._running = started, paused
        try:
            yield
        finally:
            self._running = started + time.perf_counter() - paused, None

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
def counting(path: Path, *, earlier: float = 0.0, keep: bool = False) -> Iterator[Stopwatch]:
    """A stopwatch for `path`, noted every second; forgotten once the block has succeeded, unless `keep`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    watch, done = Stopwatch(path, earlier), threading.Event()

    def keep_noting() -> None:
        while not done.wait(_INTERVAL_S):
            watch.note()

    noting = threading.Thread(target=keep_noting, daemon=True)
    noting.start()
    try:
        yield watch
    except BaseException:
        keep = True
        raise
    finally:
        done.set()
        noting.join()
        watch.note() if keep else watch.forget()


def noted_seconds(path: Path) -> float:
    """What the attempts at `path` have noted; 0 where there was none."""
    file = _file(path)
    return float(file.read_text()) if file.exists() else 0.0


def process_seconds() -> float:
    """Seconds since this process began, imports included (proc_pid_stat(5), field 22, in clock ticks)."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def _file(path: Path) -> Path:
    return path.with_name(f".seconds-{path.name}")
