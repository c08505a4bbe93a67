"""Difficulty of a text without a model: pure functions of text or tokens."""

from __future__ import annotations

import re
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


def sentence_length(texts: Sequence[str]) -> np.ndarray:
    """Mean words a sentence: (W,) float64, higher is harder; 0 for a text without words.

    Words are what whitespace separates. A sentence ends at . ! ? (or their full-width forms), a closing quote
    or bracket included, where whitespace or the text's end follows, and at an empty line. What a window cuts
    off at its ends counts as a sentence.
    """
    return np.array([_mean_words(text) for text in texts], dtype=np.float64)


_SENTENCE_END = re.compile(r"(?:(?<=[.!?])[\"'’”)\]]*(?:\s+|$))|(?<=[。！？])|\n\s*\n")


def _mean_words(text: str) -> float:
    counts = [words for piece in _SENTENCE_END.split(text) if (words := len(piece.split()))]
    return sum(counts) / len(counts) if counts else 0.0
