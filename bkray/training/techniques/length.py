"""Length curriculum: windows are cut into pieces, short ones at first, so that a batch keeps its tokens.

    tokens (B, N + 1) ─► N / n pieces of a window, of n targets each ─► (B N / n, n + 1)

Every target of the window is a target of one piece, with less to read before it. A piece costs less than its
share of the window where the mixer's cost grows faster than the length (arXiv 2108.06084).
"""

from __future__ import annotations

from torch import Tensor

from bkray.config.savings import Length


def length_at(progress: float, length: Length, window: int) -> int:
    """Targets of a piece when the share `progress` of the steps is done.

    It doubles in equal parts of `until`, and is the window from there on.
    """
    *short, whole = length.lengths(window)
    place = int(progress / length.until * len(short))
    return short[place] if place < len(short) else whole


def pieces(tokens_BN1: Tensor, length: int) -> Tensor:
    """The pieces of windows (B, N + 1), those of one window after each other: (B N / length, length + 1)."""
    return tokens_BN1.unfold(1, length + 1, length).flatten(0, 1)
