import numpy as np
import pytest

from bkray.curriculum import CurriculumSampler, GrowingSampler, ReplaySampler, WeightedSampler

TARGET, POOL, BATCH, STEPS = 60, 25, 8, 40


def target(**changes):
    options = {"pacing": "linear", "start": 0.2, "seed": 3, **changes}
    return CurriculumSampler(np.arange(TARGET)[::-1], BATCH, STEPS, **options)


def sampler(share=0.3, of=None):
    return ReplaySampler(of or target(), TARGET, POOL, share)


def drawn(one, steps=STEPS):
    return [one.ids(step) for step in range(steps)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.97])
def test_the_share_is_that_of_all_draws_and_of_every_batch_to_within_one(share):
    replayed = np.array([(ids >= TARGET).sum() for ids in drawn(sampler(share))])
    assert all(len(ids) == BATCH for ids in drawn(sampler(share)))
    totals = np.cumsum(replayed)
    assert np.abs(totals - share * BATCH * np.arange(1, STEPS + 1)).max() <= 0.5 + 1e-9
    assert np.abs(replayed - share * BATCH).max() < 1


def test_a_pass_over_the_pool_has_each_window_once_in_an_order_that_the_seed_decides():
    ids = np.concatenate(drawn(sampler(0.5)))
    replayed = ids[ids >= TARGET] - TARGET
    for begin in range(0, len(replayed) - POOL, POOL):
        np.testing.assert_array_equal(np.sort(replayed[begin : begin + POOL]), np.arange(POOL))
    assert (replayed[:POOL] != replayed[POOL : 2 * POOL]).any()
    other = np.concatenate(drawn(sampler(0.5, target(seed=4))))
    assert (other[other >= TARGET] - TARGET != replayed).any()


def test_the_target_keeps_its_curriculum_and_its_adjuster():
    one, plain = sampler(), target()
    seen = np.concatenate(drawn(one, 5))
    easiest = target().order[: plain.available(4)]
    assert set(seen[seen < TARGET]) <= set(easiest)
    assert one.share(7) == plain.share(7)
    assert one.available(7) == plain.available(7) + POOL
    before = one.ids(20)
    one.advance(10, 0.9)
    assert one.share(20) == 1.0
    assert (one.ids(20) != before).any()
    again = sampler()
    again.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(again.ids(20), one.ids(20))
    np.testing.assert_array_equal(again.ids(9), sampler().ids(9))


@pytest.mark.parametrize(
    "of",
    [
        target(),
        WeightedSampler(np.arange(1.0, TARGET + 1), np.zeros(TARGET), BATCH, STEPS, seed=1),
        GrowingSampler([np.arange(30), np.arange(30, TARGET)], [0, 20], TARGET, BATCH, STEPS),
    ],
)
def test_a_step_is_the_same_whatever_was_asked_before_and_however_many_ranks_share_it(of):
    expected, one = drawn(sampler(of=of)), sampler(of=of)
    for step in (31, 4, 4, 17):
        np.testing.assert_array_equal(one.ids(step), expected[step])
        parts = [one.ids(step, rank, 4) for rank in range(4)]
        np.testing.assert_array_equal(np.concatenate(parts), expected[step])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_of_all_is_refused(share):
    with pytest.raises(ValueError, match=r"share .* must lie in \(0, 1\)"):
        sampler(share)


def test_it_draws_no_batches_of_another_size():
    with pytest.raises(ValueError, match="skipping cannot take replay"):
        sampler().drawing(lambda step: 12)
