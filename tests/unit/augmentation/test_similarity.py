"""chrF against its definition, by counters."""

import random
from collections import Counter

import pytest

from bkray.augmentation.similarity import ORDER, chrf


def defined(text, reference):
    text, reference = "".join(text.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, ORDER + 1):
        ours, theirs = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (text, reference))
        if ours and theirs:
            common = sum((ours & theirs).values())
            precisions.append(common / sum(ours.values()))
            recalls.append(common / sum(theirs.values()))
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_it_is_what_the_definition_says():
    rng = random.Random(0)
    for _ in range(200):
        text, other = ("".join(rng.choices("abcd é\U0001f600\n", k=rng.randrange(2, 80))) + "a" for _ in "12")
        assert chrf(text, other) == pytest.approx(defined(text, other), abs=1e-12)
        assert chrf(text, other) == pytest.approx(chrf(other, text), abs=1e-12)


def test_its_ends():
    assert chrf("the same words", "the\nsame  words") == 1.0
    assert chrf("abc", "xyz") == 0.0
    assert chrf("", "words") == chrf("words", " ") == 0.0
    whole = "a text that is long enough to be cut somewhere in the middle"
    assert chrf(whole, whole * 3) < 0.55 < chrf(whole[:40], whole) < 0.9
