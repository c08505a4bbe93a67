"""WordNet 3.0 and a part-of-speech tagger, both through nltk: single-word synonyms in the form of a word.

    word, tag ─► lemma (morphy) ─► its most frequent sense ─► the other lemmas ─► the word's inflection

Loaded once a process: it takes 5 to 10 s. Nothing is downloaded here, see `missing_data`. nltk is imported
where it is used: every process imports this module, and few use it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from bkray.config import UserError

NEEDED = {
    "wordnet": "corpora/wordnet",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
}
"""nltk's packages by their places under a folder of nltk.data.path."""

_PARTS = {"N": "n", "V": "v", "J": "a", "R": "r"}
_EXCEPTIONS = {"n": "noun.exc", "v": "verb.exc", "a": "adj.exc", "r": "adv.exc"}
_TAGS = ("NN", "NNS", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "JJ", "JJR", "JJS", "RB", "RBR", "RBS")
_VOWELS = "aeiou"


def missing_data() -> list[str]:
    """The packages of `NEEDED` that are nowhere on nltk.data.path (NLTK_DATA)."""
    return [package for package, place in NEEDED.items() if not _found(place)]


def check_data() -> None:
    """Raise UserError where WordNet or the tagger is missing, with the ways to get them."""
    if missing := missing_data():
        raise UserError(
            f"augmentation synonym needs nltk's {' and '.join(missing)}, which are in no folder of "
            "nltk.data.path: set NLTK_DATA to a folder that holds corpora/ and taggers/, or run "
            "`bkray fetch wordnet`; where there is no network, do that elsewhere and bring the folder"
        )


def _found(place: str) -> bool:
    import nltk

    for name in (place, f"{place}.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        return True
    return False


class Thesaurus:
    """Synonyms from WordNet, tags from the averaged perceptron; one a process, see `thesaurus`."""

    def __init__(self) -> None:
        check_data()
        from nltk.corpus import wordnet
        from nltk.tag.perceptron import PerceptronTagger

        wordnet.ensure_loaded()
        self._wordnet = wordnet
        self._tagger = PerceptronTagger(lang="eng")
        self._irregular = {part: self._irregular_forms(name) for part, name in _EXCEPTIONS.items()}
        self.synonyms, self.has_synonyms = cache(self._synonyms), cache(self._has_synonyms)

    def tag(self, words: list[str], index: int) -> str:
        """The Penn Treebank tag of `words[index]`; the tagger looks two words to either side."""
        tagged: list[tuple[str, str]] = self._tagger.tag(words)
        return tagged[index][1]

    def _synonyms(self, word: str, tag: str) -> tuple[str, ...]:
        """Other words for a lower-case `word`, in its inflection, those of its most frequent sense.

        Empty for tags that are no noun, verb, adjective or adverb, for names, and where nothing is known.
        """
        part = _PARTS.get(tag[0])
        if part is None or tag.startswith("NNP"):
            return ()
        lemma = self._wordnet.morphy(word, part)
        senses = self._wordnet.synsets(lemma, part) if lemma else []
        if not senses:
            return ()
        names = [name for name in senses[0].lemma_names() if name.isalpha() and name.islower()]
        forms = [self._inflected(name, tag, part) for name in names if name != lemma]
        return tuple(form for form in forms if form and form != word)

    def _has_synonyms(self, word: str) -> bool:
        """Whether `word` has a synonym under any tag: tagging costs more than this."""
        return any(self.synonyms(word, tag) for tag in _TAGS)

    def _inflected(self, lemma: str, tag: str, part: str) -> str | None:
        """`lemma` in the form that `tag` names, or None where it is not known for sure."""
        if tag in {"NN", "JJ", "RB", "VB", "VBP"}:
            return lemma
        irregular = self._irregular[part].get(lemma, ())
        if tag in {"NNS", "VBZ"}:
            known = [form for form in irregular if form.endswith("s")] if tag == "VBZ" else list(irregular)
            form = known[0] if known else _with_s(lemma)
        elif tag == "VBG":
            known = [form for form in irregular if form.endswith("ing")]
            form = known[0] if known else _with_ing(lemma)
        elif tag in {"VBD", "VBN"}:
            known = [form for form in irregular if not form.endswith(("ing", "s"))]
            if len(known) > 1:
                return None  # WordNet does not say which is the participle
            form = known[0] if known else _with_ed(lemma)
        else:  # comparatives and superlatives: irregular and doubled ones only
            ending = "er" if tag.endswith("R") else "est"
            known = [form for form in irregular if form.endswith(ending)]
            if not known:
                return None
            form = known[0]
        return form if self._wordnet.morphy(form, part) == lemma else None

    def _irregular_forms(self, file: str) -> dict[str, tuple[str, ...]]:
        """WordNet's exception list turned round: lemma to its irregular forms."""
        forms: dict[str, list[str]] = defaultdict(list)
        with self._wordnet.open(file) as lines:
            for line in lines:
                form, *lemmas = line.split()
                for lemma in lemmas:
                    forms[lemma].append(form)
        return {lemma: tuple(known) for lemma, known in forms.items()}


@cache
def thesaurus() -> Thesaurus:
    """The thesaurus of this process; raises UserError where its data is missing."""
    return Thesaurus()


def _with_s(lemma: str) -> str:
    if lemma.endswith(("s", "x", "z", "ch", "sh")):
        return lemma + "es"
    return lemma[:-1] + "ies" if _ends_in_y(lemma) else lemma + "s"


def _with_ed(lemma: str) -> str:
    if lemma.endswith("e"):
        return lemma + "d"
    return lemma[:-1] + "ied" if _ends_in_y(lemma) else lemma + "ed"


def _with_ing(lemma: str) -> str:
    if lemma.endswith("ie"):
        return lemma[:-2] + "ying"
    return (
        lemma[:-1] + "ing"
        if lemma.endswith("e") and not lemma.endswith(("ee", "oe", "ye"))
        else lemma + "ing"
    )


def _ends_in_y(lemma: str) -> bool:
    return len(lemma) > 1 and lemma[-1] == "y" and lemma[-2] not in _VOWELS
