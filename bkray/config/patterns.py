"""Regular expressions that a recipe brings: whether they compile, and end."""

from __future__ import annotations

import functools
import re
import subprocess
import sys

_PROBE_S = 20
"""Even a busy machine starts Python in that; a pattern that doubles its time a letter needs years."""
_PROBE = """
import re, sys
search = re.compile(sys.argv[1]).search
for letter in "a0A_ .,-=#":
    for line in (letter * 60, letter * 60 + "!", "!" + letter * 60 + "\\0", ("a" + letter) * 30 + "\\0"):
        search(line)
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
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", _PROBE, pattern], timeout=_PROBE_S, check=True)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{pattern!r} takes more than {_PROBE_S} s for a line of 60 letters: write it without a "
            r"repetition within a repetition, such as \w+ for (\w+\s?)*"
        ) from None
    return pattern
