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
from bkray.corpus.cleaning.near import MOST_A_KEY, Compared, keys_of, located, shingles, signatures


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
    where near-duplicates are looked for, at most 12 a word, and 512 a text and 16 a text and band
    (`rows_per_band`) more. A key proposes its first MOST_A_KEY texts, so that what a text takes has a bound
    also among pages of one template.

    Args:
        texts: in an order that does not change; of equal candidates the first is named.
        overlap: words in a run; None: overlap is no leak.
        near: threshold and words an n-gram of near-duplicates (`near_duplicates`); None: no leak either.
    """

    def __init__(self, texts: Sequence[str], overlap: int | None, near: tuple[float, int] | None) -> None:
        self.overlap, self.near = overlap, near
        self._hashes = _FirstRows.of([_hash(text) for text in texts])
        found = [words(text) for text in texts]
        self._runs = _FirstRows.of([_runs(words_n, overlap) for words_n in found])
        if near:
            sets = [shingles(words_n, near[1]) for words_n in found]
            signatures_DK = signatures(sets)
            self._compared = Compared(sets, signatures_DK, near[0])
            keys_BD = keys_of(signatures_DK, near[0]).T
            self._rows_BD = np.argsort(keys_BD, axis=1, kind="stable")
            self._keys_BD = np.take_along_axis(keys_BD, self._rows_BD, axis=1)

    def leaks(self, texts: Sequence[str]) -> tuple[list[Leak | None], np.ndarray]:
        """What each text gives away, None where nothing; and which were not compared with all (D,).

        These share a key with more than the MOST_A_KEY texts that it proposes.
        """
        found = [words(text) for text in texts]
        near, crowded_D = self._near_duplicates(found)
        each = zip(texts, near, found, strict=True)
        leaks = [self._equal(text) or leak or self._overlap(words_n) for text, leak, words_n in each]
        return leaks, crowded_D

    def _equal(self, text: str) -> Leak | None:
        rows = self._hashes.rows_of(_hash(text))
        return Leak("equal", int(rows[0]), 1.0) if len(rows) else None

    def _near_duplicates(self, texts: Sequence[np.ndarray]) -> tuple[list[Leak | None], np.ndarray]:
        """Of the `words` of every text."""
        if not self.near or not texts:
            return [None] * len(texts), np.zeros(len(texts), dtype=bool)
        threshold, ngram = self.near
        sets = [shingles(words_n, ngram) for words_n in texts]
        signatures_DK, marks = signatures(sets), self._compared.marks()
        begins_DB, ends_DB = self._spans(keys_of(signatures_DK, threshold))
        found: list[Leak | None] = []
        for mine, signature_K, *spans in zip(sets, signatures_DK, begins_DB, ends_DB, strict=True):
            asked = self._compared.of_set(mine, signature_K)
            row, similarity = self._compared.most_similar(asked, self._candidates(*spans), marks)
            found.append(Leak("near duplicate", row, similarity) if similarity >= threshold else None)
        return found, (ends_DB - begins_DB > MOST_A_KEY).any(axis=1)

    def _spans(self, keys_DB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in each band those lie that share its key: begins and ends, (D, B) each."""
        pairs = list(zip(self._keys_BD, keys_DB.T, strict=True))
        sides = [[np.searchsorted(keys, asked, side) for keys, asked in pairs] for side in ("left", "right")]
        begins_BD, ends_BD = map(np.stack, sides)
        return begins_BD.T, ends_BD.T

    def _candidates(self, begins_B: np.ndarray, ends_B: np.ndarray) -> np.ndarray:
        """The rows that the keys propose, each once, in their order."""
        ends_B = np.minimum(ends_B, begins_B + MOST_A_KEY)
        spans = zip(self._rows_BD, begins_B.tolist(), ends_B.tolist(), strict=True)
        return np.unique(np.concatenate([rows[begin:end] for rows, begin, end in spans]))

    def _overlap(self, words_n: np.ndarray) -> Leak | None:
        mine = _runs(words_n, self.overlap)
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
        """The row of each hash asked for that is there."""
        return self.rows[located(self.hashes, asked)[1]]


def _hash(text: str) -> np.ndarray:
    return np.array([text_hash(text)], np.uint64)


def _runs(words_n: np.ndarray, n: int | None) -> np.ndarray:
    """The set of a text's runs of n words: sorted uint64, none of a text with fewer words."""
    return np.unique(ngrams(words_n, n)) if n and len(words_n) >= n else np.zeros(0, np.uint64)
