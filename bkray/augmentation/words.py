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


class RandomDeletion(WordAugmentation):
    """Delete each word with `probability`; where all would go, the one with the highest draw stays.

    Of the two gaps around a deleted word the one with more line breaks stays, the first of equals.
    """

    kind = "deletion"

    def _change(self, parts: list[str], draws: np.ndarray) -> None:
        deleted = np.flatnonzero(draws < self.probability).tolist()
        if len(deleted) == len(draws):
            deleted.remove(int(draws.argmax()))
        for word in deleted:
            at = 2 * word
            parts[at] = ""
            if 0 < at < len(parts) - 1:  # of the gaps around it, move the one to keep to the right
                before, after = parts[at - 1], parts[at + 1]
                parts[at - 1] = ""
                parts[at + 1] = after if after.count("\n") > before.count("\n") else before


class RandomSwap(WordAugmentation):
    """Swap each word with its right neighbour with `probability`; a word moves once at most, gaps never."""

    kind = "swap"

    def _change(self, parts: list[str], draws: np.ndarray) -> None:
        moved = -1
        for word in np.flatnonzero(draws[:-1] < self.probability).tolist():
            if word > moved:
                left, right = 2 * word, 2 * word + 2
                parts[left], parts[right] = parts[right], parts[left]
                moved = word + 1
