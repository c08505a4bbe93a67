"""Words and n-grams as 64-bit hashes: what near-duplicates and quality are computed from.

text ─► words (lower case) ─► uint64 a word ─► uint64 an n-gram
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from bkray.corpus.schema import stable_id

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # kana, Han: written without gaps, a character a word
_WORD = rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,64}}"  # a longer one is several, so that the cache holds none
_WORDS = re.compile(_WORD)
_TOKENS = re.compile(rf"{_WORD}|[^\w\s]")
_AT_ONCE = 1 << 20  # characters of which the words are held as strings
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_hash = lru_cache(maxsize=1 << 18)(stable_id)


def words(text: str) -> np.ndarray:
    """Hashes of the words, case and punctuation aside: (n,) uint64, n >= 1. A text without words is one."""
    return _hashes(_WORDS, text)


def tokens(text: str) -> np.ndarray:
    """Hashes of the words and of each other visible character: (n,) uint64, n >= 1."""
    return _hashes(_TOKENS, text)


def _hashes(pattern: re.Pattern[str], text: str) -> np.ndarray:
    lower = text.lower()
    long = len(lower) > _AT_ONCE
    found = (match[0] for match in pattern.finditer(lower)) if long else pattern.findall(lower)
    hashes = np.fromiter(map(_hash, found), dtype=np.uint64)
    return hashes if len(hashes) else np.array([stable_id(text)], dtype=np.uint64)


def ngrams(hashes_n: np.ndarray, n: int) -> np.ndarray:
    """A hash of each run of n hashes along the last axis: (..., max(1, length - n + 1)) uint64.

    Fewer than n hashes make one run.
    """
    n = min(n, hashes_n.shape[-1])
    count = hashes_n.shape[-1] - n + 1
    combined = hashes_n[..., :count].astype(np.uint64)
    for place in range(1, n):
        combined = combined * _MULTIPLIER + hashes_n[..., place : place + count]
    return combined
