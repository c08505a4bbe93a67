"""The paired bootstrap: seeded, paired, and covering what it claims to cover."""

import math

import numpy as np
import pytest

from bkray.config import UserError
from bkray.evaluation.paired import paired_bootstrap


def test_a_constant_ratio_has_no_width():
    interval = paired_bootstrap([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert interval.ratio == pytest.approx((2.0, 2.0, 2.0))
    assert interval.pairs == 3


def test_pairing_removes_what_the_seeds_share():
    rng = np.random.default_rng(0)
    shared = np.exp(rng.normal(0, 1, 10))
    a, b = 1.1 * shared * np.exp(rng.normal(0, 0.01, 10)), shared
    paired, mixed = paired_bootstrap(a, b), paired_bootstrap(a, rng.permutation(b))
    assert paired.low > 0
    assert mixed.low < 0 < mixed.high


def test_swapping_the_arms_changes_the_sign():
    a, b = [1.0, 1.2, 0.9, 1.4], [1.1, 1.0, 1.0, 1.0]
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert forth.log_ratio == pytest.approx(-back.log_ratio)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


def test_same_seed_same_interval_and_a_wider_level_is_wider():
    a, b = [1.0, 1.2, 0.9, 1.4], [1.1, 1.0, 1.0, 1.0]
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)
    assert paired_bootstrap(a, b, level=0.5).high < paired_bootstrap(a, b, level=0.99).high


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        interval = paired_bootstrap(np.exp(rng.normal(0.2, 0.1, 20)), np.ones(20), resamples=500)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.88 < covered / 300 < 0.98


def test_refuses_what_has_no_log_ratio():
    with pytest.raises(UserError, match="more seeds"):
        paired_bootstrap([1.0], [1.0])
    with pytest.raises(UserError, match="nan at pair 1"):
        paired_bootstrap([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(UserError, match=r"0\.0 at pair 0"):
        paired_bootstrap([1.0, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="one value a seed"):
        paired_bootstrap([1.0, 1.0], [1.0])
