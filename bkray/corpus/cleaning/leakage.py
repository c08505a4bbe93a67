"""Leakage: training documents that give away text which another corpus holds out.

    held-out texts ─► HeldOutTexts ─┐
    training texts ─────────────────┴─► leaks: equal, near-duplicate or overlapping, with the text concerned

Overlap is that of Brown et al. 2020 (arXiv 2005.14165, appendix C): a run of n words, case and punctuation
aside, that both texts hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bkray.corpus.cleaning.exact import text_hash
from bkray.corpus.cleaning.hashing import ngrams, words
from bkray.corpus.cleaning.near import band_keys, jaccard, shingles


class Leak(NamedTuple):
    """What a text gives away."""

    kind: str
    """equal, near duplicate or overlap: the first that holds."""
    row: int
    """The held-out text concerned: the most similar one, else the first."""
    value: float
    """1 where equal, the Jaccard similarity, or the share of the text's runs of n words that are held out."""


class HeldOutTexts:
    """Held-out texts, looked up by what they have in common with others.

    A few arrays, which processes on one machine can share: 16 bytes a text and 16 a word for the overlap;
    where near-duplicates are looked for, 8 a word and 16 a text and band (`rows_per_band`) more.

    Args:
        texts: in an order that does not change; of equal candidates the first is named.
        overlap: words in a run; None: overlap is no leak.
        near: threshold and words an n-gram of near-duplicates (`near_duplicates`); None: no leak either.
    """

    def __init__(self, texts: Sequence[str], overlap: int | None, near: tuple[float, int] | None) -> None:
        self.overlap, self.near = overlap, near
        self._hashes = _FirstRows.of([_hash(text) for text in texts])
        self._runs = _FirstRows.of([_runs(text, overlap) for text in texts])
        if near:
            sets = [shingles(text, near[1]) for text in texts]
            self._ends, self._shingles = np.cumsum([0, *map(len, sets)]), np.concatenate(sets)
            keys_BD = band_keys(texts, *near).T
            self._rows_BD = np.argsort(keys_BD, axis=1, kind="stable")
            self._keys_BD = np.take_along_axis(keys_BD, self._rows_BD, axis=1)

    def leaks(self, texts: Sequence[str]) -> list[Leak | None]:
        """What each text gives away; None where nothing."""
        found = zip(texts, self._candidates(texts), strict=True)
        return [self._leak(text, rows) for text, rows in found]

    def _leak(self, text: str, rows: np.ndarray) -> Leak | None:
        return self._equal(text) or self._near_duplicate(text, rows) or self._overlap(text)

    def _equal(self, text: str) -> Leak | None:
        rows = self._hashes.rows_of(_hash(text))
        return Leak("equal", int(rows[0]), 1.0) if len(rows) else None

    def _candidates(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For each text the rows that share a key of a band with it, each once."""
        if not self.near:
            return [np.zeros(0, np.int64)] * len(texts)
        found: list[list[np.ndarray]] = [[] for _ in texts]
        asked_BD = band_keys(texts, *self.near).T
        for keys, rows, asked in zip(self._keys_BD, self._rows_BD, asked_BD, strict=True):
            begins, ends = (np.searchsorted(keys, asked, side).tolist() for side in ("left", "right"))
            for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                found[place].append(rows[begin:end])
        return [np.unique(np.concatenate(rows)) for rows in found]

    def _near_duplicate(self, text: str, rows: np.ndarray) -> Leak | None:
        if not self.near or not len(rows):
            return None
        threshold, ngram = self.near
        mine, ends = shingles(text, ngram), self._ends
        theirs = ((row, self._shingles[ends[row] : ends[row + 1]]) for row in rows.tolist())
        similarity, row = max((jaccard(mine, other), -row) for row, other in theirs)
        return Leak("near duplicate", -row, similarity) if similarity >= threshold else None

    def _overlap(self, text: str) -> Leak | None:
        mine = _runs(text, self.overlap)
        rows = self._runs.rows_of(mine)
        return Leak("overlap", int(rows.min()), len(rows) / len(mine)) if len(rows) else None


class _FirstRows(NamedTuple):
    """Hashes, sorted and unique, and the first row that has each."""

    hashes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, hashes: list[np.ndarray]) -> _FirstRows:
        """From the hashes (uint64) of every row."""
        row_of = np.repeat(np.arange(len(hashes)), [len(one) for one in hashes])
        unique, first = np.unique(np.concatenate(hashes), return_index=True)
        return cls(unique, row_of[first])

    def rows_of(self, asked: np.ndarray) -> np.ndarray:
        """The row of each hash asked for that is there, in the time of a search each."""
        places = np.searchsorted(self.hashes, asked)
        there = places < len(self.hashes)
        there[there] = self.hashes[places[there]] == asked[there]
        return self.rows[places[there]]


def _hash(text: str) -> np.ndarray:
    return np.array([text_hash(text)], np.uint64)


def _runs(text: str, n: int | None) -> np.ndarray:
    """The set of a text's runs of n words: sorted uint64, none of a text with fewer words."""
    found = words(text) if n else np.zeros(0, np.uint64)
    return np.unique(ngrams(found, n)) if n and len(found) >= n else np.zeros(0, np.uint64)
