import numpy as np
import pytest

from bkray.curriculum import GrowingSampler

JOINED = [np.arange(50, 70), np.array([3, 1, 2]), np.arange(10, 40)]
STARTS = [0, 10, 30]


def sampler(joined=JOINED, starts=STARTS, **changes):
    settings = {"windows": 100, "batch_size": 4, "total_steps": 60, "seed": 5, **changes}
    return GrowingSampler(joined, starts, **settings)


def drawn(one, begin, end):
    return np.concatenate([one.ids(step) for step in range(begin, end)])


def test_only_windows_that_have_joined_are_drawn():
    one = sampler()
    assert set(drawn(one, 0, 10)) == set(JOINED[0])
    assert set(drawn(one, 10, 30)) == {*JOINED[0], *JOINED[1]}
    assert set(drawn(one, 30, 60)) == {*JOINED[0], *JOINED[1], *JOINED[2]}
    assert [one.available(step) for step in (0, 9, 10, 29, 30, 1000)] == [20, 20, 23, 23, 53, 53]
    assert one.share(10) == 0.23
    np.testing.assert_array_equal(np.sort(one.order), np.arange(100))


def test_those_that_join_come_in_what_is_left_of_the_pass():
    one = sampler(starts=[0, 8, 30])
    left = set(JOINED[0]) - set(drawn(one, 5, 8))  # the second pass began at step 5
    assert len(left) == 8
    assert set(drawn(one, 8, 11)[:11]) == {*left, *JOINED[1]}


def test_a_round_that_is_not_known_yet_changes_no_draw_before_it():
    for known in (1, 2):
        early, late = sampler(JOINED[:known]), sampler()
        np.testing.assert_array_equal(drawn(early, 0, STARTS[known]), drawn(late, 0, STARTS[known]))
    np.testing.assert_array_equal(sampler().ids(45), sampler().ids(45))


def test_the_ranks_share_a_batch():
    parts = [sampler().ids(33, rank, 2) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), sampler().ids(33))


@pytest.mark.parametrize(
    ("joined", "starts"),
    [
        ([np.array([1, 2]), np.array([2])], [0, 5]),
        ([np.array([], dtype=np.int64)], [0]),
        ([np.array([1]), np.array([2])], [0]),
        ([np.array([1])], [3]),
        ([np.array([1]), np.array([2]), np.array([3])], [0, 7, 5]),
    ],
)
def test_rounds_that_contradict_each_other_are_refused(joined, starts):
    with pytest.raises(ValueError, match=r"joins|rise from 0"):
        sampler(joined, starts)
