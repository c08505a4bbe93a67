"""The loop of active learning on ids alone."""

import numpy as np
import pytest

from bkray.selection import ActiveLearningLoop

IDS = np.random.default_rng(0).permutation(10_000)[:1000].astype(np.int64)


def loop(ids=IDS, **changes):
    return ActiveLearningLoop(
        ids, **{"start": 0.1, "pool": 0.2, "keep": 0.25, "rounds": 4, "seed": 3, **changes}
    )


def lowest(pool, count=50):
    return np.sort(pool)[:count]


def test_windows_join_from_pools_that_hold_none_of_those_taken():
    one = loop()
    assert len(one.taken) == 100
    for number in range(1, 5):
        pool = one.pool()
        assert len(np.unique(pool)) == 200
        assert not np.isin(pool, one.taken).any()
        assert np.isin(pool, IDS).all()
        before = one.taken
        one.add(lowest(pool))
        np.testing.assert_array_equal(one.taken, [*before, *lowest(pool)])
        assert one.round == number
    assert len(np.unique(one.taken)) == 300
    with pytest.raises(ValueError, match="all 4 rounds are done"):
        one.pool()


@pytest.mark.parametrize("changes", [{}, {"pool": 0.5, "keep": 0.6}, {"ids": np.arange(9), "rounds": 3}])
def test_the_sizes_of_the_pools_are_known_before(changes):
    one = loop(**changes)
    expected = one.pool_sizes()
    for size in expected:
        assert len(one.pool()) == size
        one.add(one.any_of_pool())


def test_what_it_draws_depends_on_the_seed_and_what_was_added_alone():
    one, other = loop(), loop(ids=IDS[::-1])
    for _ in range(3):
        np.testing.assert_array_equal(one.taken, other.taken)
        np.testing.assert_array_equal(one.pool(), other.pool())
        one.add(lowest(one.pool()))
        other.pool(), other.any_of_pool()  # asking changes nothing
        other.add(lowest(other.pool()))
    assert (one.pool() != loop(seed=4).pool()).any()


def test_what_was_not_selected_goes_back_and_every_round_samples_anew():
    one = loop()
    first = one.pool()
    one.add(first[-50:])
    again = np.intersect1d(first[:-50], one.pool())
    assert 15 < len(again) < 60  # 35 by chance, 150 of the 850 that are left in a sample of 200


def test_any_of_the_pool_is_a_uniform_sample():
    drawn = np.zeros(1000)
    for seed in range(400):
        one = loop(ids=np.arange(1000), seed=seed)
        chosen = one.any_of_pool()
        assert len(np.unique(chosen)) == 50
        assert np.isin(chosen, one.pool()).all()
        drawn[chosen] += 1
    assert drawn.sum() == 400 * 50
    expected = 400 * 50 / 1000
    halves = [drawn[:500].mean(), drawn[500:].mean(), drawn[::2].mean(), drawn[1::2].mean()]
    np.testing.assert_allclose(halves, expected, rtol=0.05)
    assert drawn.var() < 2 * expected  # a binomial's, not that of windows that always come


def test_every_round_goes_over_what_it_has_equally_often():
    starts = loop().starts(2000)
    sizes = [100, 150, 200, 250, 300]
    lengths = np.diff([*starts, 2000])
    np.testing.assert_allclose(lengths / sizes, 2.0, rtol=0.01)
    assert starts[0] == 0
    assert loop(rounds=0).starts(7) == [0]


def test_the_last_pool_is_what_is_left():
    one = loop(start=0.9, pool=0.2, rounds=1)
    assert len(one.pool()) == 100
    assert len(one.any_of_pool()) == 25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array([1, 2, 2])}, "3 ids, 2 of them distinct"),
        ({"ids": np.array([], dtype=np.int64)}, "0 ids"),
        ({"start": 0.0}, "start 0.0 must lie"),
        ({"pool": 1.2}, "pool 1.2 must lie"),
        ({"keep": -1.0}, "keep -1.0 must lie"),
        ({"rounds": -1}, "rounds -1"),
    ],
)
def test_what_cannot_be_a_loop_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        loop(**changes)


def test_only_the_pool_can_be_added_and_once():
    one = loop()
    for wrong in (one.taken[:3], np.repeat(one.pool()[:1], 2), np.array([-1])):
        with pytest.raises(ValueError, match="round 1: each of the chosen must be in the pool"):
            one.add(wrong)
    assert one.round == 0
