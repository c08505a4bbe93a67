"""Forms that English has, or none: no rule makes up a word, no inflection is lost. CI has WordNet."""

import pytest

from bkray.augmentation.wordnet import NEEDED, missing_data, thesaurus

pytestmark = pytest.mark.skipif(bool(missing_data()), reason=f"nltk's {' and '.join(NEEDED)} are not here")


@pytest.mark.parametrize(
    ("word", "tag", "wrong"),
    [
        ("days", "NNS", "yearses"),
        ("men", "NNS", "handses"),
        ("minutes", "NNS", "transactionses"),
        ("documents", "NNS", "paperses"),
        ("lyrics", "NNS", "wordses"),
        ("forests", "NNS", "woodses"),
        ("cattle", "NNS", "cowses"),
        ("scored", "VBD", "hited"),
        ("allowed", "VBN", "leted"),
        ("closed", "VBN", "shuted"),
        ("occurred", "VBD", "haped"),
        ("becomes", "VBZ", "gos"),
        ("forest", "NN", "woods"),
        ("basketball", "NN", "hoops"),
    ],
)
def test_no_word_is_made_up_and_no_plural_stands_for_one(word, tag, wrong):
    assert wrong not in thesaurus().synonyms(word, tag)


@pytest.mark.parametrize(
    ("lemma", "tag", "part", "form"),
    [
        ("epoch", "NNS", "n", None),
        ("monarch", "NNS", "n", None),
        ("stomach", "NNS", "n", None),
        ("church", "NNS", "n", "churches"),
        ("city", "NNS", "n", "cities"),
        ("kid", "NNS", "n", "kids"),
        ("information", "NNS", "n", None),
        ("sheep", "NNS", "n", None),
        ("go", "VBZ", "v", None),
        ("input", "VBD", "v", None),
        ("input", "VBG", "v", None),
        ("blog", "VBD", "v", None),
        ("programme", "VBZ", "v", None),
        ("start", "VBZ", "v", "starts"),
        ("stop", "VBD", "v", "stopped"),
        ("put", "VBD", "v", None),
        ("put", "VBG", "v", "putting"),
        ("beat", "VBD", "v", None),
        ("beat", "VBN", "v", "beaten"),
        ("become", "VBD", "v", "became"),
        ("become", "VBN", "v", None),
        ("work", "VBD", "v", None),
    ],
)
def test_a_form_is_known_for_sure_or_not_made(lemma, tag, part, form):
    assert thesaurus()._inflected(lemma, tag, part) == form


@pytest.mark.parametrize(
    ("word", "tag"),
    [("tombs", "NN"), ("drank", "VBP"), ("inscribed", "VB"), ("began", "VBG"), ("sheep", "NNS")],
)
def test_a_word_that_is_not_in_the_form_of_its_tag_stays(word, tag):
    assert thesaurus().synonyms(word, tag) == ()


@pytest.mark.parametrize(
    "pair", ["took place", "post offices", "ice creams", "went home", "mothers tongue", "prime minister"]
)
def test_two_words_are_an_expression_in_any_form(pair):
    assert thesaurus().is_expression(*pair.split())
    assert not thesaurus().is_expression(*reversed(pair.split()))


def test_the_caches_are_bounded():
    known = thesaurus()
    for cached in (known.synonyms, known.has_synonyms, known._forms):
        before = cached.cache_info().maxsize
        assert before is not None
        assert before <= 1 << 16
    size = known.synonyms.cache_info().currsize
    assert not any(known.has_synonyms(f"unknown{number}") for number in range(100))
    assert known.synonyms.cache_info().currsize == size, "the check fills no cache but its own"
