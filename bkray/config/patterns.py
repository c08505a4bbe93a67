"""Regular expressions that a recipe brings: whether they compile, and end.

Python's `re` tries all ways to match, of which nested repetitions have exponentially many. It looks for
signals meanwhile, so a timer ends it, at 1 µs a line; the third-party `regex`, which has a time limit of its
own, takes longer, and its `\\w` takes other characters.
"""

from __future__ import annotations

import functools
import re
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

LINE_BYTES = 1000
"""The beginning of a line that a pattern is held against: many take time in the square of a line's length."""
MEND = r"write it without a repetition within a repetition, such as \w+ for (\w+\s?)*, or with fewer of .*"
_PROBE_S = 5
_SHORT = 60
"""Letters after which a pattern that doubles its time with each needs years."""
_PIECES = "a0A_ .,-=#éяα中あ한ب"
_ENDINGS = "a0 é!\0"
_MOST_PIECES = 64


@functools.cache
def checked_pattern(pattern: str) -> str:
    """`pattern` itself; raises ValueError where it is no regular expression or takes for ever.

    Simple lines are tried, so not all that take long are found: `limited` is for the lines of the corpus.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    try:
        limited(lambda: [search(line) for line in _lines(pattern)], _PROBE_S)()
    except TimeoutError:
        raise ValueError(
            f"{pattern!r} takes more than {_PROBE_S} s for lines of up to {LINE_BYTES:,} letters: {MEND}"
        ) from None
    return pattern


def limited(call: Callable[..., T], seconds: float) -> Callable[..., T]:
    """`call`, but it raises TimeoutError once it has computed for so many seconds.

    Signals reach the main thread alone: for another one it is `call` itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return call
    signal.signal(signal.SIGVTALRM, _end)

    def ended(*arguments: object) -> T:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        try:
            return call(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    return ended


def _end(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError


def _lines(pattern: str) -> Iterator[str]:
    """Lines of one repeated piece that end, or begin, with something else."""
    for piece in _pieces(pattern):
        short, long = ((piece * length)[:length] for length in (_SHORT, LINE_BYTES))
        yield from (short + ending for ending in _ENDINGS)
        yield from (long, long + "!", "!" + long + "\0", ("a" + piece) * (LINE_BYTES // 2) + "\0")


def _pieces(pattern: str) -> list[str]:
    """What the lines are made of: common letters, and the letters and words that the pattern names."""
    escaped = [chr(int(code, 16)) for code in re.findall(r"\\(?:x|u|U0{3,4})([0-9a-fA-F]{2,5})", pattern)]
    return list(dict.fromkeys([*_PIECES, *escaped, *re.findall(r"\w{2,}", pattern), *pattern]))[:_MOST_PIECES]
