"""Synonym replacement from WordNet (EDA, Wei and Zou 2019, arXiv 1901.11196), by part of speech.

drawn words ─► plain ones ─► tag from their neighbours ─► synonyms in the same form and case
               but those of multi-word expressions
"""

from __future__ import annotations

import re

import numpy as np

from bkray.augmentation.wordnet import Thesaurus, thesaurus
from bkray.augmentation.words import WordAugmentation

_PLAIN = re.compile(r"([^\w]*)([A-Z]?[a-z]{2,})([^\w]*)")
_PAIR = re.compile(r"\W*(\w\S*) (\S*\w)\W*")
_PUNCTUATION = ".,;:!?()[]\"'"
_FUNCTION_WORDS = """
about above after again all also am an and any are as at be because been before being below between both
but by can could did do does doing done down during each even ever few first for from further get gets
getting go goes going got had has have having he her here hers him his how if in into is it its itself
just last less like made make makes making many may me might more most much must my never new next no
nor not now of off on once one only or other our out over own same see set shall she should so some
still such than that the their them then there these they this those through to too two under until up
us used using very was we were what when where which while who whom why will with would yet you your
"""
_STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


class SynonymReplacement(WordAugmentation):
    """Replace each word with `probability` by a synonym of the same part of speech, inflection and case.

    Left as they are: stop words, names, numbers, words with other characters in them (abbreviations, code,
    compounds), words that are an entry of WordNet with a neighbour ("post office"), and words without a
    single-word synonym, so that fewer words change than are drawn. At most `max_share` of a document's words
    change. Raises UserError where WordNet or the tagger is missing.
    """

    kind = "synonym"

    def __init__(self, probability: float, seed: int, max_share: float = 0.3) -> None:
        super().__init__(probability, seed)
        if not 0.0 < max_share <= 1.0:
            raise ValueError(f"max_share {max_share} must be above 0 and at most 1")
        self.max_share = max_share

    def _change(self, parts: list[str], draws: np.ndarray) -> None:
        known, original, words = thesaurus(), parts.copy(), parts[::2]
        drawn = np.flatnonzero(draws < self.probability)
        left = int(self.max_share * len(draws))
        for word in drawn[np.argsort(draws[drawn], kind="stable")].tolist():
            if left == 0:
                break
            match = _PLAIN.fullmatch(parts[2 * word])
            if match and match[2].lower() not in _STOP_WORDS and known.has_synonyms(match[2].lower()):
                synonyms = known.synonyms(match[2].lower(), known.tag(*_around(words, word)))
                if synonyms and not _in_expression(known, original, 2 * word):
                    chosen = synonyms[int(draws[word] / self.probability * len(synonyms))]
                    chosen = chosen.capitalize() if match[2][0].isupper() else chosen
                    parts[2 * word] = match[1] + chosen + match[3]
                    left -= 1


def _in_expression(known: Thesaurus, parts: list[str], at: int) -> bool:
    """Whether the word `parts[at]` and one beside it, between them a single blank, are an expression."""
    pairs = (_PAIR.fullmatch("".join(parts[first : first + 3])) for first in (max(0, at - 2), at))
    return any(pair and known.is_expression(pair[1].lower(), pair[2].lower()) for pair in pairs)


def _around(words: list[str], index: int) -> tuple[list[str], int]:
    """The words up to two places from `words[index]`, bare of punctuation, and its place among them."""
    first = max(0, index - 2)
    return [word.strip(_PUNCTUATION) or word for word in words[first : index + 3]], index - first
