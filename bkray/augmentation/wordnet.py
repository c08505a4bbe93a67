"""WordNet 3.0 and a part-of-speech tagger, both through nltk: single-word synonyms in the form of a word.

    word, tag ─► lemma (morphy) ─► its most frequent sense ─► the other lemmas ─► the word's inflection

An inflected form is taken only where an exception list of WordNet names it, or where it is regular and stands
in WordNet's own definitions and examples: rules alone make words that nobody has written ("informations").

Loaded once a process: it takes 2 to 4 s. Nothing is downloaded here, see `missing_data`. nltk is imported
where it is used: every process imports this module, and few use it.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from bkray.config import UserError

NEEDED = {
    "wordnet": "corpora/wordnet",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
}
"""nltk's packages by their places under a folder of nltk.data.path."""

_PARTS = {"N": "n", "V": "v", "J": "a", "R": "r"}
_EXCEPTIONS = {"n": "noun.exc", "v": "verb.exc", "a": "adj.exc", "r": "adv.exc"}
_DATA = ("data.noun", "data.verb", "data.adj", "data.adv")
_INDEXES = ("index.noun", "index.verb", "index.adj", "index.adv")
_FILES = {
    "wordnet": ("lexnames", *_INDEXES, *_DATA, *_EXCEPTIONS.values()),
    "averaged_perceptron_tagger_eng": tuple(
        f"averaged_perceptron_tagger_eng.{part}.json" for part in ("weights", "tagdict", "classes")
    ),
}
_LAST_BYTES = (b"\n", b"}", b"]")
"""What the files above end with; one that was cut seldom does."""
_BASE = frozenset({"NN", "JJ", "RB", "VB", "VBP"})
_ENDINGS = {"VBZ": "s", "VBG": "ing"}
_REGULAR = re.compile(r"\b[a-z]+(?:s|ed|ing)\b")
_PARTICIPLES, _PASTS = ("en", "wn"), ("came", "ran")  # WordNet lists one form where there are two
_VOWELS = "aeiou"
_NUMBER = re.compile(r"\d+(?:st|nd|rd|th)?")
_KNOWN_WORDS = 1 << 15
"""Entries of each cache; a document's words mostly come from fewer."""


def missing_data() -> list[str]:
    """The packages of `NEEDED` that are nowhere on nltk.data.path (NLTK_DATA), or damaged there."""
    return [package for package in NEEDED if fault(package)]


def check_data() -> None:
    """Raise UserError where WordNet or the tagger is missing or damaged, with the ways to get them."""
    faults = {package: why for package in NEEDED if (why := fault(package))}
    if faults:
        reasons = "; ".join(dict.fromkeys(faults.values()))
        raise UserError(
            f"augmentation synonym needs nltk's {' and '.join(faults)} ({reasons}): set NLTK_DATA to a "
            "folder that holds corpora/ and taggers/, or run `bkray fetch wordnet`, or `bkray fetch wordnet "
            "--deb FILE` with Debian's wordnet-base (WordNet without the tagger); where there is no network, "
            "do that elsewhere and bring the folder"
        )


def fault(package: str) -> str | None:
    """Why nltk cannot load a package of `NEEDED`, as far as names and ends of files show; None: it can."""
    if (place := find_data(package)) is None:
        return "in no folder of nltk.data.path"
    try:
        whole = _read_archive(place) if place.suffix == ".zip" else _read_folder(place)
    except (OSError, zipfile.BadZipFile) as error:
        return f"{place} cannot be read: {error}"
    broken = [name for name in _FILES[package] if name not in whole]
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return f"{place} holds no whole {', '.join(broken[:3])}{more}" if broken else None


def find_data(package: str) -> Path | None:
    """The folder or else the archive of a package of `NEEDED` that nltk takes, whole or not."""
    import nltk

    for name in (NEEDED[package], f"{NEEDED[package]}.zip"):
        try:
            return Path(str(nltk.data.find(name)))
        except LookupError:
            continue
        except (OSError, zipfile.BadZipFile):  # of an archive, in which it looks for the folder too
            archives = (Path(folder, f"{NEEDED[package]}.zip") for folder in nltk.data.path)
            return next((archive for archive in archives if archive.exists()), None)
    return None


def _read_archive(path: Path) -> set[str]:
    """The names of the files that hold something."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    return {entry.filename.removeprefix(f"{path.stem}/") for entry in entries if entry.file_size}


def _read_folder(path: Path) -> set[str]:
    """The names of the files that end as they should."""
    return {file.name for file in path.iterdir() if file.is_file() and _last_byte(file) in _LAST_BYTES}


def _last_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(1, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read()


class Thesaurus:
    """Synonyms from WordNet, tags from the averaged perceptron; one a process, see `thesaurus`."""

    def __init__(self) -> None:
        check_data()
        from nltk.tag.perceptron import PerceptronTagger

        self._wordnet = _load_wordnet()
        self._tagger = PerceptronTagger(lang="eng")
        self._irregular = {part: self._irregular_forms(name) for part, name in _EXCEPTIONS.items()}
        self._plurals = {form for forms in self._irregular["n"].values() for form in forms}
        self._attested = self._attested_forms()
        self._pairs = frozenset(name for name in self._wordnet.all_lemma_names() if name.count("_") == 1)
        self.synonyms = lru_cache(_KNOWN_WORDS)(self._synonyms)
        self.has_synonyms = lru_cache(_KNOWN_WORDS)(self._has_synonyms)
        self._forms = lru_cache(_KNOWN_WORDS)(self._with_bases)

    def tag(self, words: list[str], index: int) -> str:
        """The Penn Treebank tag of `words[index]`; the tagger looks two words to either side."""
        tagged: list[tuple[str, str]] = self._tagger.tag(words)
        return tagged[index][1]

    def is_expression(self, first: str, second: str) -> bool:
        """Whether WordNet has a lemma of two lower-case words, each as it stands or in a base form."""
        pairs = product(self._forms(first), self._forms(second))
        return any("_".join(pair) in self._pairs for pair in pairs)

    def _synonyms(self, word: str, tag: str) -> tuple[str, ...]:
        """Other words for a lower-case `word`, in its inflection, those of its most frequent sense.

        Empty for tags that are no noun, verb, adjective or adverb, for names, where nothing is known, and
        where `word` is not in the form that `tag` names: the tagger errs, or the word is a plural by itself.
        """
        part = _PARTS.get(tag[0])
        if part is None or tag.startswith("NNP"):
            return ()
        lemma, others = self._sense(word, part)
        if (word == lemma) != (tag in _BASE) or not word.endswith(_ENDINGS.get(tag, "")):
            return ()
        forms = [self._inflected(other, tag, part) for other in others]
        return tuple(form for form in forms if form and form != word)

    def _has_synonyms(self, word: str) -> bool:
        """Whether `word` may have a synonym under some tag: tagging costs more than this."""
        return any(self._sense(word, part)[1] for part in _EXCEPTIONS)

    def _with_bases(self, word: str) -> tuple[str, ...]:
        """`word`, then its lemma as each part of speech, where that is another."""
        bases = [self._wordnet.morphy(word, part) for part in _EXCEPTIONS]
        return tuple(dict.fromkeys([word, *filter(None, bases)]))

    def _sense(self, word: str, part: str) -> tuple[str | None, list[str]]:
        """The lemma of `word`, and the other single-word lemmas of its most frequent sense, the one read.

        A number has none, be it a cardinal or an ordinal.
        """
        lemma = self._wordnet.morphy(word, part)
        if lemma is None:
            return None, []
        names = self._names(lemma, part)
        others = [name for name in names if name.isalpha() and name.islower() and name != lemma]
        return lemma, [] if others and self._is_number(lemma) else others

    def _names(self, lemma: str, part: str) -> list[str]:
        """All lemmas of the most frequent sense of `lemma` as this part of speech, none where it is none."""
        from nltk.corpus.reader.wordnet import WordNetError

        try:
            names: list[str] = self._wordnet.synset(f"{lemma}.{part}.1").lemma_names()
        except WordNetError:
            return []
        return names

    def _is_number(self, lemma: str) -> bool:
        """Whether digits stand for the noun or the adjective: "ten" is "10", "third" is "3rd"."""
        return any(_NUMBER.fullmatch(name) for part in ("n", "a") for name in self._names(lemma, part))

    def _inflected(self, lemma: str, tag: str, part: str) -> str | None:
        """`lemma` in the form that `tag` names, or None where it is not known for sure."""
        if part == "n" and self._is_plural(lemma):
            return None
        if tag in _BASE:
            return lemma
        irregular = self._irregular[part].get(lemma, ())
        if tag == "NNS":
            form = self._only(irregular, _with_s(lemma))
        elif tag == "VBZ":
            form = self._only([form for form in irregular if form.endswith("s")], _with_s(lemma))
        elif tag == "VBG":
            form = self._only([form for form in irregular if form.endswith("ing")], _with_ing(lemma))
        elif tag in {"VBD", "VBN"}:
            form = self._only(
                [form for form in irregular if not form.endswith(("ing", "s"))], _with_ed(lemma)
            )
            if form and form.endswith(_PARTICIPLES if tag == "VBD" else _PASTS):
                return None
        else:  # comparatives and superlatives: irregular and doubled ones only
            ending = "er" if tag.endswith("R") else "est"
            form = next((form for form in irregular if form.endswith(ending)), None)
        return form if form and self._wordnet.morphy(form, part) == lemma else None

    def _only(self, irregular: Sequence[str], regular: str) -> str | None:
        """The one form that is known: an irregular one, or the regular one; None of several or of none."""
        known = [*irregular, *([regular] if regular in self._attested else [])]
        return known[0] if len(known) == 1 else None

    def _is_plural(self, noun: str) -> bool:
        """Whether `noun` is the plural of another one, though it has an entry of its own (woods, men)."""
        if noun.endswith("s") and not noun.endswith("ss"):
            return bool(self._wordnet.morphy(noun[:-1], "n") == noun[:-1])
        return noun in self._plurals

    def _attested_forms(self) -> frozenset[str]:
        """The words of WordNet's definitions and examples that may be regular forms."""
        forms: set[str] = set()
        for name in _DATA:
            with self._wordnet.open(name) as file:
                for line in file.read().splitlines():
                    forms.update(_REGULAR.findall(line.partition("|")[2]))
        return frozenset(forms)

    def _irregular_forms(self, file: str) -> dict[str, tuple[str, ...]]:
        """WordNet's exception list turned round: lemma to its irregular forms."""
        forms: dict[str, list[str]] = defaultdict(list)
        with self._wordnet.open(file) as lines:
            for line in lines:
                form, *lemmas = line.split()
                for lemma in lemmas:
                    forms[lemma].append(form)
        return {lemma: tuple(known) for lemma, known in forms.items()}


def _load_wordnet() -> Any:
    """nltk's reader of WordNet, which loads two and a half times as fast as `nltk.corpus.wordnet`."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    class English(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """Other languages need it, and it takes a third of the loading."""

        def open(self, file: str) -> Any:
            """nltk's streams read lines slowly; data.* are left to them, as senses are looked up by byte."""
            stream = super().open(file)
            return stream if file in _DATA else io.StringIO(stream.read())

    return LazyCorpusLoader("wordnet", English, "no other languages")


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
