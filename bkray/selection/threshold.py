"""Thresholds of scores by histograms that add up: no sorting, no row leaves its block.

    score, id ─► key: six digits in base 2^16 ─► a histogram of one digit a pass ─► the digits of the k-th row
                                                       + over blocks

Ordered by their keys, rows are ordered by the largest score, and by the lower id among equals. The first
digit is the sign, the exponent and seven bits of the score: its histogram alone gives quantiles to within
2^-8 of their size, whatever their range (the idea of DDSketch, arXiv 1908.10693, with a float's own bits for
the logarithm). Each further digit makes the threshold exact where a pass over the rows is spent on it (radix
selection; Knuth, The Art of Computer Programming 3, 5.2.5).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

BINS = 1 << 16
DIGITS = 6

Prefix = tuple[int, ...]
"""The first digits of a threshold: rows whose digits are not above it are taken."""
Group = TypeVar("Group", bound=Hashable)


def sort_keys(scores_W: np.ndarray, ids_W: np.ndarray) -> np.ndarray:
    """Digits (W, 6), uint16, most significant first: ascending is the largest score, then the lower id.

    scores: float32; ids: int64, not negative. Raises ValueError for other types, and for a NaN.
    """
    if scores_W.dtype != np.float32 or ids_W.dtype != np.int64:
        raise ValueError(f"scores {scores_W.dtype} and ids {ids_W.dtype}: they must be float32 and int64")
    if np.isnan(scores_W).any():
        raise ValueError(f"the score of row {ids_W[np.isnan(scores_W)][0]} is not a number")
    bits = (scores_W + np.float32(0)).view(np.uint32)  # + 0: minus zero equals zero
    descending = np.where(bits >> 31, bits, ~bits & 0x7FFFFFFF)
    score = [(descending >> shift).astype(np.uint16) for shift in (16, 0)]
    return np.stack([*score, *((ids_W >> shift).astype(np.uint16) for shift in (48, 32, 16, 0))], axis=1)


def matches(keys_WK: np.ndarray, prefix: Prefix) -> np.ndarray:
    """Which rows begin with `prefix`: (W,) bool."""
    return (keys_WK[:, : len(prefix)] == prefix).all(axis=1)


def taken(keys_WK: np.ndarray, prefix: Prefix) -> np.ndarray:
    """Which rows come before the threshold `prefix` or begin with it: (W,) bool."""
    before, equal = np.zeros(len(keys_WK), dtype=bool), np.ones(len(keys_WK), dtype=bool)
    for column, digit in enumerate(prefix):
        before |= equal & (keys_WK[:, column] < digit)
        equal &= keys_WK[:, column] == digit
    return before | equal


def thresholds(
    count: Callable[[Mapping[Group, Prefix]], Mapping[Group, np.ndarray]], wanted: Mapping[Group, int]
) -> dict[Group, Prefix]:
    """The threshold that takes exactly `wanted` rows of each group: six passes at most, mostly two or three.

    count: for every group the histogram (BINS,) of the digit after its prefix, over the rows that begin with
    the prefix; histograms of blocks add up. Raises ValueError where a group has fewer rows than wanted.
    """
    found: dict[Group, Prefix] = {}
    pending: dict[Group, Prefix] = {group: () for group in wanted}
    left = dict(wanted)
    while pending:
        counts = count(pending)
        for group, prefix in list(pending.items()):
            cumulative = counts[group].cumsum()
            if not 1 <= left[group] <= cumulative[-1]:
                raise ValueError(f"{left[group]} rows wanted of {cumulative[-1]} in group {group}")
            digit = int(cumulative.searchsorted(left[group]))
            pending[group] = (*prefix, digit)
            left[group] -= int(cumulative[digit] - counts[group][digit])
            if left[group] == counts[group][digit] or len(pending[group]) == DIGITS:
                found[group] = pending.pop(group)
    return found


def histogram(scores_W: np.ndarray) -> np.ndarray:
    """Counts (BINS,), int64, of float32 scores by the first digit of their keys; histograms add up."""
    first_W = sort_keys(scores_W, np.zeros(len(scores_W), dtype=np.int64))[:, 0]
    return np.bincount(first_W, minlength=BINS)


def quantile(counts: np.ndarray, share: float) -> float:
    """The score that `share` of the rows do not exceed, from their histogram.

    It is the middle of the bin of the row of rank ceil(share x rows): off by at most 2^-8 (0.4 %) of that
    row's own score, and by 2^-134 where that is below 2^-126. Raises ValueError for no rows.
    """
    rows = int(counts.sum())
    if not rows:
        raise ValueError("an empty histogram has no quantiles")
    rank = max(1, int(np.ceil(share * rows)))
    digit = BINS - 1 - int(counts[::-1].cumsum().searchsorted(rank))
    bits = np.uint32(digit << 16) if digit >> 15 else np.uint32(~(digit << 16) & 0x7FFF0000)
    low, high = (np.uint32(edge).view(np.float32) for edge in (bits, bits | 0xFFFF))
    return (float(low) + float(high)) / 2 if np.isfinite(low) else float(low)
