"""Random deletion and swap of words (EDA, Wei and Zou 2019, arXiv 1901.11196).

    DOCUMENTS (originals) ─► words, gaps ─► draws keyed by (seed, kind, doc_id) ─► DOCUMENTS, one a row

A word is a maximal run of characters that are not white space; the gaps between words stay where they can.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from bkray.augmentation.copies import Augmentation
from bkray.corpus.schema import row_rng

_GAP = re.compile(r"(\s+)")


class WordAugmentation(Augmentation):
    """Exactly one augmented document for each original; where no word is changed it is an unchanged copy."""

    def __init__(self, probability: float, seed: int) -> None:
        """`probability` a word, 0 < p < 1; raises ValueError outside."""
        if not 0.0 < probability < 1.0:
            raise ValueError(f"probability {probability} must lie between 0 and 1")
        self.probability = probability
        self.seed = seed

    def _copies(self, ids: Sequence[int], texts: Sequence[str]) -> list[tuple[str, str | None]]:
        return [
            (self._augment(text, row_rng(self.seed, self.kind, doc_id)), None)
            for doc_id, text in zip(ids, texts, strict=True)
        ]

    def _augment(self, text: str, rng: np.random.Generator) -> str:
        body = text.strip()
        if not body:
            return text
        parts = _GAP.split(body)  # word, gap, word, …, word
        self._change(parts, rng.random(len(parts) // 2 + 1))
        begin = text.index(body)
        return text[:begin] + "".join(parts).strip() + text[begin + len(body) :]

    @abstractmethod
    def _change(self, parts: list[str], draws: np.ndarray) -> None:
        """Change words (even positions) and gaps (odd ones) in place, given a draw in [0, 1) a word."""


class _Shortest(WordAugmentation):
    """With a number of words below which a document stays as it is."""

    def __init__(self, probability: float, seed: int, min_words: int = 1) -> None:
        """Raises ValueError for `min_words` below 1 too."""
        super().__init__(probability, seed)
        if min_words < 1:
            raise ValueError(f"min_words {min_words} must be at least 1")
        self.min_words = min_words


class RandomDeletion(_Shortest):
    """Delete each word with `probability`; `min_words` are left at least, those with the highest draws.

    Of the two gaps around a deleted word the one with more line breaks stays, the first of equals.
    """

    kind = "deletion"

    def _change(self, parts: list[str], draws: np.ndarray) -> None:
        drawn = np.flatnonzero(draws < self.probability)
        lowest_first = drawn[np.argsort(draws[drawn], kind="stable")]
        for word in sorted(lowest_first[: max(0, len(draws) - self.min_words)].tolist()):
            at = 2 * word
            parts[at] = ""
            if 0 < at < len(parts) - 1:  # of the gaps around it, move the one to keep to the right
                before, after = parts[at - 1], parts[at + 1]
                parts[at - 1] = ""
                parts[at + 1] = after if after.count("\n") > before.count("\n") else before


class RandomSwap(_Shortest):
    """Swap each word with its right neighbour with `probability`; a word moves once at most, gaps never.

    A document of fewer than `min_words` stays as it is.
    """

    kind = "swap"

    def _change(self, parts: list[str], draws: np.ndarray) -> None:
        moved = -1 if len(draws) >= self.min_words else len(draws)
        for word in np.flatnonzero(draws[:-1] < self.probability).tolist():
            if word > moved:
                left, right = 2 * word, 2 * word + 2
                parts[left], parts[right] = parts[right], parts[left]
                moved = word + 1
