"""chrF, the similarity of two texts by their character n-grams (Popović 2015, aclanthology.org/W15-3049)."""

from __future__ import annotations

import numpy as np

ORDER = 6
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: n-grams are told apart by 64 bits


def chrf(text: str, reference: str) -> float:
    """The F-score (beta 1: symmetric) of mean precision and recall of n-grams, n = 1 … 6, in [0, 1].

    White space is left out. 1 for the same characters in the same order; 0 where either has none.
    """
    ours, theirs = _characters(text), _characters(reference)
    precisions, recalls = [], []
    mine, other = ours, theirs
    for n in range(1, ORDER + 1):
        if n > 1:
            mine, other = _longer(mine, ours, n), _longer(other, theirs, n)
        if not len(mine) or not len(other):
            break
        common = _in_common(mine, other)
        precisions.append(common / len(mine))
        recalls.append(common / len(other))
    if not precisions or not sum(precisions):
        return 0.0
    precision, recall = float(np.mean(precisions)), float(np.mean(recalls))
    return 2 * precision * recall / (precision + recall)


def _characters(text: str) -> np.ndarray:
    """Code points (characters,) without white space."""
    return np.frombuffer("".join(text.split()).encode("utf-32-le"), np.uint32).astype(np.uint64)


def _longer(grams: np.ndarray, characters: np.ndarray, n: int) -> np.ndarray:
    """Hashes of n-grams from those of one character less."""
    return grams[:-1] * _MULTIPLIER + characters[n - 1 :] if len(characters) >= n else grams[:0]


def _in_common(ours: np.ndarray, theirs: np.ndarray) -> int:
    """The size of the intersection of two multisets."""
    mine, my_counts = np.unique(ours, return_counts=True)
    other, other_counts = np.unique(theirs, return_counts=True)
    _, left, right = np.intersect1d(mine, other, assume_unique=True, return_indices=True)
    return int(np.minimum(my_counts[left], other_counts[right]).sum())
