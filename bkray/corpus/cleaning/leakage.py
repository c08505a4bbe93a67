"""Leakage: training documents that give away text which another corpus holds out.

    held-out texts ─► HeldOutTexts ─┐
    training texts ─────────────────┴─► leaks: equal, near-duplicate or overlapping, with the text concerned

Overlap is that of Brown et al. 2020 (arXiv 2005.14165, appendix C): a run of n words, case and punctuation
aside, that both texts hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
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

    Holds 16 bytes a word of theirs for the overlap and, where near-duplicates are looked for, 8 a word and a
    key for each band (`rows_per_band`) more.

    Args:
        texts: in an order that does not change; of equal candidates the first is named.
        overlap: words in a run; None: overlap is no leak.
        near: threshold and words an n-gram of near-duplicates (`near_duplicates`); None: no leak either.
    """

    def __init__(self, texts: Sequence[str], overlap: int | None, near: tuple[float, int] | None) -> None:
        self.overlap, self.near = overlap, near
        self._equal = {text_hash(text): row for row, text in reversed(list(enumerate(texts)))}
        self._runs, self._row_of_run = _first_rows([_runs(text, overlap) for text in texts])
        self._shingles: list[np.ndarray] = []
        self._rows_by_key: dict[tuple[int, int], list[int]] = defaultdict(list)
        if near:
            self._shingles = [shingles(text, near[1]) for text in texts]
            for row, keys in enumerate(band_keys(texts, *near).tolist()):
                for key in enumerate(keys):
                    self._rows_by_key[key].append(row)

    def leaks(self, texts: Sequence[str]) -> list[Leak | None]:
        """What each text gives away; None where nothing."""
        keys_DB = band_keys(texts, *self.near).tolist() if self.near else [[]] * len(texts)
        return [self._leak(text, keys) for text, keys in zip(texts, keys_DB, strict=True)]

    def _leak(self, text: str, keys: list[int]) -> Leak | None:
        if (row := self._equal.get(text_hash(text))) is not None:
            return Leak("equal", row, 1.0)
        return self._near_duplicate(text, keys) or self._overlap(text)

    def _near_duplicate(self, text: str, keys: list[int]) -> Leak | None:
        rows = set(chain.from_iterable(self._rows_by_key.get(key, ()) for key in enumerate(keys)))
        if not self.near or not rows:
            return None
        threshold, ngram = self.near
        mine = shingles(text, ngram)
        similarity, row = max((jaccard(mine, self._shingles[row]), -row) for row in rows)
        return Leak("near duplicate", -row, similarity) if similarity >= threshold else None

    def _overlap(self, text: str) -> Leak | None:
        mine = _runs(text, self.overlap)
        shared = np.isin(mine, self._runs, assume_unique=True)
        if not shared.any():
            return None
        row = self._row_of_run[np.searchsorted(self._runs, mine[shared])].min()
        return Leak("overlap", int(row), float(shared.mean()))


def _runs(text: str, n: int | None) -> np.ndarray:
    """The set of a text's runs of n words: sorted uint64, none of a text with fewer words."""
    found = words(text) if n else np.zeros(0, np.uint64)
    return np.unique(ngrams(found, n)) if n and len(found) >= n else np.zeros(0, np.uint64)


def _first_rows(runs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All runs, sorted and unique, and the first row that has each."""
    row_of = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    unique, first = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]), return_index=True)
    return unique, row_of[first]
