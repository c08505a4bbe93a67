"""How well one score orders what another one measures."""

from __future__ import annotations

import math

import numpy as np


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank.

    a, b: (W,). NaN where either is constant or there are fewer than two.
    """
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values_W: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values_W, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
