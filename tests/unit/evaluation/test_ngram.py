"""The vectorised n-gram baselines against a direct reading of the formulas."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from bkray.evaluation.ngram import NGramBaseline

VOCAB = 5


def windows(count=12, width=8, seed=0, vocab=VOCAB):
    """A Markov chain in which half of the tokens follow from the one before."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(vocab, size=(count, width)).astype(np.int32)
    for n in range(1, width):
        follows = rng.random(count) < 0.5
        tokens[follows, n] = (3 * tokens[follows, n - 1] + 1) % vocab
    return tokens


def kneser_ney(tokens, order):
    """P(w | context), straight from Chen and Goodman's recursion over tuples and sets."""
    rows = [tuple(map(int, row)) for row in tokens]
    counts = {order: Counter(row[i : i + order] for row in rows for i in range(len(row) - order + 1))}
    for length in range(order - 1, 0, -1):
        longer = {gram for gram in counts[length + 1]}
        counts[length] = Counter(gram[1:] for gram in longer)
        if length > 1:
            counts[length].update(row[:length] for row in rows)

    def probability(word, context):
        length = len(context) + 1
        table = counts[length]
        if length == 1:
            return (table[(word,)] + 1) / (sum(table.values()) + VOCAB)
        once, twice = (sum(c == n for c in table.values()) + 1 for n in (1, 2))
        discount = once / (once + 2 * twice)
        followers = {gram[-1]: c for gram, c in table.items() if gram[:-1] == context}
        lower = probability(word, context[1:])
        if not followers:
            return lower
        total = sum(followers.values())
        return (max(followers.get(word, 0) - discount, 0) + discount * len(followers) * lower) / total

    return probability


@pytest.mark.parametrize("order", [2, 3, 4])
def test_matches_the_formula(order):
    train, held_out = windows(), windows(seed=1)
    probability = kneser_ney(train, order)
    expected = -sum(
        math.log(probability(int(row[n]), tuple(map(int, row[max(0, n - order + 1) : n]))))
        for row in held_out
        for n in range(1, len(row))
    )
    assert NGramBaseline.fit(train, VOCAB, order).nats(held_out) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_every_context(order):
    baseline = NGramBaseline.fit(windows(count=4), VOCAB, order)
    for length in range(1, order + 1):
        contexts = np.stack(np.meshgrid(*[np.arange(VOCAB)] * length, indexing="ij"), -1).reshape(-1, length)
        sums = baseline.probability(contexts).reshape(-1, VOCAB).sum(1)
        np.testing.assert_allclose(sums, 1.0, rtol=1e-12)


def test_unigram_is_add_one_over_the_targets_only():
    baseline = NGramBaseline.fit(np.array([[4, 0, 0, 1]]), VOCAB, 1)
    np.testing.assert_allclose(baseline.unigram_V, np.array([3, 2, 1, 1, 1]) / 8)
    assert baseline.nats(np.array([[2, 0, 4]])) == pytest.approx(-math.log(3 / 8) - math.log(1 / 8))


def test_contexts_do_not_cross_windows():
    train, held_out = windows(), windows(seed=1)
    baseline = NGramBaseline.fit(train, VOCAB, 3)
    order = np.random.default_rng(0).permutation(len(train))
    assert NGramBaseline.fit(train[order], VOCAB, 3).nats(held_out[::-1]) == pytest.approx(
        baseline.nats(held_out), rel=1e-12
    )
    assert baseline.nats(held_out) == pytest.approx(sum(baseline.nats(row[None]) for row in held_out))


def test_higher_orders_predict_structure_that_they_can_see():
    train, held_out = windows(400, 33), windows(100, 33, seed=1)
    nats = [NGramBaseline.fit(train, VOCAB, order).nats(held_out) for order in (1, 2, 3)]
    assert nats[1] < 0.9 * nats[0]
    assert nats[2] < 1.05 * nats[1]


@pytest.mark.parametrize("tokens", [[[0, 1]], [[0, 1], [2, 3]], [[0, 0, 0, 0, 0, 0]]])
def test_tiny_corpora_leave_no_target_impossible(tokens):
    baseline = NGramBaseline.fit(np.array(tokens), VOCAB, 3)
    assert math.isfinite(baseline.nats(windows(50)))


def test_packed_contexts_survive_a_large_vocabulary():
    vocab = 2**20
    tokens = np.array([[vocab - 1, vocab - 2, vocab - 1, vocab - 2, vocab - 1]], dtype=np.int32)
    baseline = NGramBaseline.fit(tokens, vocab, 3)
    assert baseline.probability(tokens[:, :3])[0] > 0.2


@pytest.mark.parametrize(
    ("tokens", "order", "message"),
    [
        (np.zeros((2, 3)), 1, "integers"),
        (np.zeros(3, dtype=int), 1, "(3,)"),
        (np.zeros((0, 3), dtype=int), 1, "(0, 3)"),
        (np.array([[0, VOCAB]]), 1, "vocabulary of 5"),
        (np.array([[0, 1]]), 0, "order 0"),
        (np.array([[0, 1]]), 28, "order 28"),
    ],
)
def test_refuses_what_it_cannot_count(tokens, order, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NGramBaseline.fit(tokens, VOCAB, order)
