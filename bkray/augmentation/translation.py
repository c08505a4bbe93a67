"""Back-translation (Sennrich et al. 2016, arXiv 1511.06709): to another language and back, by any translator.

text ─► translator.forth ─► translator.back ─► chrF with the original ─► copy, or a reason why not
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bkray.augmentation.copies import Augmentation
from bkray.augmentation.similarity import chrf


class Translator(Protocol):
    """Translates texts to a pivot language and back, each by itself: its neighbours change nothing."""

    def check(self) -> None:
        """Raise UserError where it cannot work on this machine."""

    def forth(self, texts: Sequence[str]) -> list[str]: ...

    def back(self, texts: Sequence[str]) -> list[str]: ...


class BackTranslation(Augmentation):
    """The round trip of a document, where it is `lowest` to `highest` similar to it (chrF, 0 to 1).

    Below, a copy is dropped as "wreck": cut, repeated or foreign. Above, as "near copy": hardly anything has
    changed. A blank one is a wreck whatever the limits. Raises UserError where the translator fails.
    """

    kind = "back_translation"

    def __init__(self, translator: Translator, lowest: float = 0.4, highest: float = 0.95) -> None:
        """Raises ValueError unless 0 <= lowest < highest <= 1."""
        if not 0.0 <= lowest < highest <= 1.0:
            raise ValueError(f"lowest {lowest} and highest {highest} must be in order and within 0 and 1")
        self.translator, self.lowest, self.highest = translator, lowest, highest

    def _copies(self, ids: Sequence[int], texts: Sequence[str]) -> list[tuple[str, str | None]]:
        returned = self.translator.back(self.translator.forth(texts))
        return [(new, self.fault(new, old)) for new, old in zip(returned, texts, strict=True)]

    def fault(self, new: str, old: str) -> str | None:
        """Why `new` may not stand beside `old`, or None."""
        if not new.strip():
            return "wreck"
        similarity = chrf(new, old)
        if new == old or similarity > self.highest:
            return "near copy"
        return "wreck" if similarity < self.lowest else None
