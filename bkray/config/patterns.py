"""Regular expressions that a recipe brings: whether they compile, and end."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys

LINE_BYTES = 1000
"""The beginning of a line that a pattern is held against: many take time in the square of a line's length."""
_PROBE_S = 20
"""Even a busy machine starts Python in that; a pattern that doubles its time a letter needs years."""
_MOST_PIECES = 64
_PROBE = f"""
import json, re, sys
pattern, pieces = json.load(sys.stdin)
search = re.compile(pattern).search
for length in (60, {LINE_BYTES}):
    for piece in pieces:
        line = (piece * length)[:length]
        for tried in (line, line + "!", "!" + line + "\\0", ("a" + piece) * (length // 2) + "\\0"):
            search(tried)
"""


@functools.cache
def checked_pattern(pattern: str) -> str:
    """`pattern` itself; raises ValueError where it is no regular expression or takes for ever.

    Python's `re` tries all ways to match, of which nested repetitions have exponentially many, and cannot be
    interrupted: simple lines are tried in a process that can be ended.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    probe = json.dumps([pattern, _pieces(pattern)]).encode()
    command = [sys.executable, "-I", "-S", "-c", _PROBE]
    try:
        subprocess.run(command, input=probe, timeout=_PROBE_S, check=True)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{pattern!r} takes more than {_PROBE_S} s for lines of up to {LINE_BYTES:,} letters: write it "
            r"without a repetition within a repetition, such as \w+ for (\w+\s?)*, or with fewer of .*"
        ) from None
    return pattern


def _pieces(pattern: str) -> list[str]:
    """What the lines are made of: common letters, and the letters and words that the pattern names."""
    named = [*re.findall(r"\w{2,}", pattern), *pattern]
    return list(dict.fromkeys(["a", *"0A_ .,-=#", *named]))[:_MOST_PIECES]
