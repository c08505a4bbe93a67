"""The paired bootstrap: seeded, paired, and covering what it claims to cover."""

import math

import numpy as np
import pytest

from bkray.config import UserError
from bkray.evaluation.paired import paired_bootstrap, paired_difference


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


def test_difference_of_one_bit_a_byte_everywhere():
    nats_SW, bytes_W = np.full((2, 5), 30.0), np.array([10, 20, 30, 40, 50])
    difference = paired_difference(nats_SW + math.log(2) * bytes_W, nats_SW, bytes_W)
    assert (difference.bits_per_byte, difference.low, difference.high) == pytest.approx((1, 1, 1))


def test_difference_is_that_of_the_arms_bits_per_byte():
    rng = np.random.default_rng(0)
    a, b = rng.gamma(5, 20, (3, 40)), rng.gamma(5, 20, (3, 40))
    bytes_W = rng.integers(50, 100, 40)
    bits = [nats.sum() / 3 / bytes_W.sum() / math.log(2) for nats in (a, b)]
    there, back = paired_difference(a, b, bytes_W), paired_difference(b, a, bytes_W)
    assert there.bits_per_byte == pytest.approx(bits[0] - bits[1])
    assert there.low < there.bits_per_byte < there.high
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_seeds_that_disagree_widen_the_interval():
    """The windows agree within a seed: only resampling the seeds can show the doubt."""
    nats_SW, bytes_W = np.full((3, 50), 30.0), np.full(50, 10)
    steady = paired_difference(nats_SW + 1.0, nats_SW, bytes_W)
    shaky = paired_difference(nats_SW + np.array([[-1.0], [1.0], [3.0]]), nats_SW, bytes_W)
    assert steady.bits_per_byte == pytest.approx(shaky.bits_per_byte)
    assert steady.low > 0
    assert shaky.low < 0


def test_difference_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    bytes_W, covered = np.full(60, 10), 0
    for _ in range(200):
        gap = rng.normal(0.5, 0.3, (8, 1)) + rng.normal(0, 3, (1, 60)) + rng.normal(0, 1, (8, 60))
        interval = paired_difference(gap, np.zeros((8, 60)), bytes_W, resamples=300)
        covered += interval.low <= 0.05 / math.log(2) <= interval.high
    assert 0.86 < covered / 200 < 1


def test_difference_refuses_other_shapes():
    with pytest.raises(ValueError, match="shapes"):
        paired_difference(np.ones((2, 3)), np.ones((2, 4)), np.ones(3))
    with pytest.raises(ValueError, match="shapes"):
        paired_difference(np.ones((0, 3)), np.ones((0, 3)), np.ones(3))
