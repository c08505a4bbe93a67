"""Thresholds: exactly k rows by score and id, whatever the blocks; quantiles within their bound."""

import numpy as np
import pytest

from bkray.selection import histogram, quantile, sort_keys, taken, thresholds
from bkray.selection.threshold import BINS, matches

SCORES = {
    "spread": lambda rng, rows: rng.standard_normal(rows) * 10.0 ** rng.integers(-30, 30, rows),
    "few values": lambda rng, rows: rng.integers(-3, 4, rows),
    "constant": lambda rng, rows: np.zeros(rows) * rng.choice([-1.0, 1.0], rows),
    "one bin": lambda rng, rows: 1.0 + rng.random(rows) * 2.0**-9,
    "extremes": lambda rng, rows: rng.choice([np.inf, -np.inf, 0.0, 1e-42, -1e-42, 3e38], rows),
}


def drawn(kind, rows=500, largest_id=2**63):
    rng = np.random.default_rng(0)
    return SCORES[kind](rng, rows).astype(np.float32), rng.integers(0, largest_id, rows)


def threshold(blocks, k):
    """The threshold for `k` rows of (scores, ids) blocks, and the passes that it took."""
    passes = []

    def count(prefixes):
        passes.append(prefixes[0])
        totals = np.zeros(BINS, dtype=np.int64)
        for scores, ids in blocks:
            keys = sort_keys(scores, ids)
            totals += np.bincount(keys[matches(keys, prefixes[0]), len(prefixes[0])], minlength=BINS)
        return {0: totals}

    return thresholds(count, {0: k})[0], len(passes)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("k", [1, 250, 499, 500])
@pytest.mark.parametrize("largest_id", [2**63, 600])
def test_exactly_k_rows_are_taken_by_score_and_then_by_id(kind, k, largest_id):
    scores, ids = drawn(kind, largest_id=largest_id)
    ids = np.unique(ids)
    ids = np.random.default_rng(1).permutation(np.concatenate([ids, 2**62 + np.arange(500 - len(ids))]))
    found, passes = threshold(
        [(scores[:7], ids[:7]), (scores[7:300], ids[7:300]), (scores[300:], ids[300:])], k
    )
    expected = sorted(range(500), key=lambda row: (-scores[row], ids[row]))[:k]
    assert np.flatnonzero(taken(sort_keys(scores, ids), found)).tolist() == sorted(expected)
    assert passes <= 6


def test_most_thresholds_take_two_passes():
    scores, ids = drawn("spread", 5000)
    assert threshold([(scores, ids)], 1234)[1] <= 2


def test_what_cannot_be_ordered_or_counted_is_refused():
    scores, ids = drawn("spread", 10)
    with pytest.raises(ValueError, match="11 rows wanted of 10"):
        threshold([(scores, ids)], 11)
    with pytest.raises(ValueError, match="float64 and ids int64"):
        sort_keys(scores.astype(np.float64), ids)
    scores[3] = np.nan
    with pytest.raises(ValueError, match=f"row {ids[3]} is not a number"):
        sort_keys(scores, ids)


@pytest.mark.parametrize("kind", SCORES)
def test_quantiles_of_summed_histograms_are_within_their_bound(kind):
    scores, _ = drawn(kind, 2000)
    counts = histogram(scores[:300]) + histogram(scores[300:])
    for share in (0.0, 0.003, 0.25, 0.5, 0.999, 1.0):
        exact = float(np.sort(scores)[max(1, int(np.ceil(share * 2000))) - 1])
        found = quantile(counts, share)
        assert found == exact or abs(found - exact) <= 2.0**-8 * abs(exact) + 2.0**-134


def test_an_empty_histogram_has_no_quantiles():
    with pytest.raises(ValueError, match="empty"):
        quantile(histogram(np.zeros(0, dtype=np.float32)), 0.5)
