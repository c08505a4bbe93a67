"""Words as hashes: of texts without a bound, in memory that has one."""

import tracemalloc

import pytest

from bkray.corpus.cleaning import hashing
from bkray.corpus.cleaning.hashing import tokens, words


def held_after(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["x" * 500_000, "-" * 500_000, " " * 500_000])
def test_nothing_of_a_text_is_kept_whether_it_is_a_word_or_has_none(text):
    kept, _ = held_after(lambda: [words(text[number:]) for number in range(20)])
    assert kept < 1e6


def test_the_words_of_a_long_text_are_not_all_held():
    text = "some words and others " * 50_000
    hashes, peak = words(text), held_after(lambda: words(text))[1]
    assert len(hashes) == 200_000
    assert peak < len(text) + 4 * hashes.nbytes


def test_a_long_text_has_the_hashes_of_a_short_one(monkeypatch):
    text = "Some words, 日本 and a " + "long" * 40
    expected = words(text).tolist(), tokens(text).tolist()
    monkeypatch.setattr(hashing, "_AT_ONCE", 0)
    assert (words(text).tolist(), tokens(text).tolist()) == expected
    assert len(expected[0]) == 6 + 3, "160 letters are three words"
