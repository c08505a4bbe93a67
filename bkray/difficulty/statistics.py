"""Difficulty of a text without a model: pure functions of text or tokens."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np


def compression_ratio(texts: Sequence[str]) -> np.ndarray:
    """Compressed over plain UTF-8 bytes (zlib, level 6): (W,) float64, higher is less predictable.

    A text without bytes counts as 1.
    """
    return np.array([_ratio(text.encode("utf-8")) for text in texts], dtype=np.float64)


def _ratio(data: bytes) -> float:
    return len(zlib.compress(data, 6)) / len(data) if data else 1.0


def rarity(tokens_WN: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
    """Mean surprisal in nats of the tokens under their own frequencies, add-one smoothed: (W,) float64."""
    counts = counts_V.astype(np.float64) + 1.0
    surprisal_V = np.log(counts.sum()) - np.log(counts)
    return surprisal_V[tokens_WN].mean(axis=1)
