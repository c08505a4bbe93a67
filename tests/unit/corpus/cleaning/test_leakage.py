"""What a training text gives away of held-out ones."""

import pickle

import numpy as np
import pytest

from bkray.corpus.cleaning import leakage
from bkray.corpus.cleaning.leakage import HeldOutTexts
from bkray.corpus.cleaning.near import Compared

RNG = np.random.default_rng(0)
HELD_OUT = [" ".join(f"w{n}" for n in RNG.integers(0, 5000, 60)) for _ in range(5)]
NEAR = (0.6, 2)


def with_new_words(text, places):
    words = text.split()
    for place in places:
        words[place] = f"new{place}"
    return " ".join(words)


def kinds(texts, overlap=13, near=NEAR):
    return [leak and (leak.kind, leak.row) for leak in leaks(HeldOutTexts(HELD_OUT, overlap, near), texts)]


def leaks(held_out, texts):
    return held_out.leaks(texts)[0]


def test_copies_near_copies_and_long_passages_leak_and_other_text_does_not():
    innocent = " ".join(f"x{n}" for n in range(60))
    near_copy = with_new_words(HELD_OUT[2], [5, 40])
    quoting = f"{innocent} {' '.join(HELD_OUT[3].split()[20:40])} {innocent}"
    given = [HELD_OUT[1], near_copy, quoting, innocent, ""]
    assert kinds(given) == [("equal", 1), ("near duplicate", 2), ("overlap", 3), None, None]
    assert kinds(given, overlap=None) == [("equal", 1), ("near duplicate", 2), None, None, None]
    assert kinds(given, near=None) == [("equal", 1), ("overlap", 2), ("overlap", 3), None, None]
    assert kinds(given, overlap=None, near=None) == [("equal", 1), None, None, None, None]


@pytest.mark.parametrize(("words", "leaking"), [(12, False), (13, True)])
def test_thirteen_words_in_a_row_overlap_whatever_case_and_punctuation(words, leaking):
    passage = ", ".join(HELD_OUT[0].upper().split()[:words])
    (leak,) = leaks(HeldOutTexts(HELD_OUT, 13, None), [f"before {passage} after"])
    assert (leak is not None) == leaking
    if leak:
        assert (leak.kind, leak.row, leak.value) == ("overlap", 0, 1 / 3)


def test_a_text_shorter_than_a_run_leaks_only_where_it_is_equal():
    held_out = HeldOutTexts(["a short text"], 13, None)
    found = leaks(held_out, ["a short text", "A short text.", f"a short text {HELD_OUT[0]}"])
    assert [leak and leak.kind for leak in found] == ["equal", None, None]


def test_of_several_the_most_similar_one_is_named_and_of_equal_ones_the_first():
    similar, nearer = (with_new_words(HELD_OUT[0], places) for places in ([3, 30, 50], [30]))
    found = HeldOutTexts([HELD_OUT[1], similar, nearer, nearer], 13, NEAR)
    assert [leak.row for leak in leaks(found, [nearer, HELD_OUT[0]])] == [2, 2]


def pages(count):
    """Of one template, whose similarity is 0.52."""
    common = " ".join(f"common{place}" for place in range(100))
    return [f"{common} {' '.join(map(str, RNG.integers(0, 1 << 40, 45)))}" for _ in range(count)]


def test_a_text_is_compared_with_so_many_pages_of_a_template_at_most(monkeypatch):
    """Near copies are found all the same, by the keys of the words that are the page's own."""
    held_out, innocent = pages(120), pages(20)
    copies = [f"{page} more" for page in held_out[-10:]]
    found = HeldOutTexts(held_out, None, NEAR)
    compared, usual = [], Compared.most_similar
    monkeypatch.setattr(
        Compared,
        "most_similar",
        lambda self, asked, others, marks: compared.append(len(others)) or usual(self, asked, others, marks),
    )
    expected, crowded = found.leaks(innocent + copies)
    assert [leak and leak.row for leak in expected] == [None] * 20 + list(range(110, 120))
    assert min(compared) > 100
    assert not crowded.any()
    monkeypatch.setattr(leakage, "MOST_A_KEY", 2)
    compared.clear()
    bounded, crowded = found.leaks(innocent + copies)
    assert bounded == expected
    assert max(compared) <= 2 * 32
    assert crowded.all()
    assert not found.leaks(HELD_OUT)[1].any()


def test_it_is_shared_as_arrays_whatever_their_number():
    """What pickle writes beside the arrays' own memory is read again for every block of documents."""
    texts = [f"{text} {number}" for number in range(40) for text in HELD_OUT]
    sizes = [
        len(pickle.dumps(HeldOutTexts(some, 13, NEAR), protocol=5, buffer_callback=lambda buffer: None))
        for some in (HELD_OUT, texts)
    ]
    assert sizes[1] < sizes[0] + 100
