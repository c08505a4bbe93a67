from itertools import combinations

import numpy as np
import pytest

from bkray.curriculum import CurriculumSampler, WeightedSampler

WEIGHT = np.exp(np.random.default_rng(0).normal(size=1000))


def sampler(**changes):
    settings = {"batch_size": 10, "total_steps": 400, "pass_share": 0.4, "start": 1.0, "seed": 3}
    return WeightedSampler(WEIGHT, np.zeros(1000), **{**settings, **changes})


def drawn(one, steps):
    return np.concatenate([one.ids(step) for step in steps])


def test_within_a_pass_no_window_comes_twice_and_every_pass_is_its_share():
    ids = drawn(sampler(), range(200)).reshape(5, 400)
    assert all(len(set(one_pass)) == 400 for one_pass in ids)
    assert set(ids[0]) != set(ids[1])


def test_heavy_windows_come_more_often():
    visits = np.bincount(drawn(sampler(), range(400)), minlength=1000)
    heaviest, lightest = np.argsort(WEIGHT)[-200:], np.argsort(WEIGHT)[:200]
    assert visits[heaviest].mean() > 7  # of 10 passes
    assert visits[lightest].mean() < 2


def test_a_pass_is_drawn_with_the_probabilities_of_successive_sampling():
    """Two of four windows: the chance of a pair is the sum over both orders of w1/S * w2/(S - w1)."""
    weight = np.array([1.0, 2.0, 4.0, 8.0])
    total, expected = weight.sum(), {}
    for a, b in combinations(range(4), 2):
        expected[a, b] = sum(
            weight[first] / total * weight[second] / (total - weight[first])
            for first, second in ((a, b), (b, a))
        )
    one = WeightedSampler(weight, np.zeros(4), 2, 1, pass_share=0.5, start=1.0)
    counts = dict.fromkeys(expected, 0)
    for step in range(8000):
        counts[tuple(sorted(one.ids(step).tolist()))] += 1
    for pair, probability in expected.items():
        assert counts[pair] / 8000 == pytest.approx(probability, abs=0.02), pair


def test_the_strength_moves_over_training_within_a_pass_too():
    one = sampler(strengths=(0.0, 3.0), total_steps=100, pass_share=1.0, batch_size=2)  # 0.2 passes in all
    early, late = (np.log(WEIGHT[drawn(one, range(at, at + 20))]).mean() for at in (0, 60))
    assert early < 0.6
    assert late > early + 0.6
    assert len(set(drawn(one, range(500)))) == 1000  # ordering anew neither repeats nor loses a window
    assert one.strength(0) == 0.0
    assert one.strength(100) == one.strength(300) == 3.0


def test_strength_zero_is_no_preference_and_a_negative_one_turns_it_round():
    correlation = [
        np.corrcoef(
            np.bincount(drawn(sampler(strengths=(s, s)), range(400)), minlength=1000), np.log(WEIGHT)
        )[0, 1]
        for s in (0.0, -1.0)
    ]
    assert abs(correlation[0]) < 0.1
    assert correlation[1] < -0.7


def test_ids_are_a_pure_function_of_the_step_and_shared_by_the_ranks():
    changes = {"strengths": (0.0, 2.0), "start": 0.3, "batch_size": 12}
    forward = [sampler(**changes).ids(step) for step in range(120)]
    one = sampler(**changes)
    for step in np.random.default_rng(1).permutation(120)[:30]:
        parts = [one.ids(int(step), rank=rank, world_size=3) for rank in range(3)]
        np.testing.assert_array_equal(np.concatenate(parts), forward[step])
    other = sampler(**changes)
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.ids(77), forward[77])


def test_with_a_curriculum_only_available_windows_are_drawn():
    difficulty = np.random.default_rng(2).random(1000)
    rank_of = np.argsort(np.argsort(difficulty))
    one = WeightedSampler(WEIGHT, difficulty, 10, 400, pass_share=0.4, start=0.2, seed=1)
    for step in range(0, 400, 40):
        assert rank_of[one.ids(step)].max() < one.available(step)


def test_unusable_weights_are_refused():
    weight = WEIGHT.copy()
    weight[7] = 0.0
    with pytest.raises(ValueError, match=r"weight 0\.0 of window 7 must be finite and above 0"):
        WeightedSampler(weight, np.zeros(1000), 10, 400)
    with pytest.raises(ValueError, match=r"weight \(1000,\) and difficulty \(999,\)"):
        WeightedSampler(WEIGHT, np.zeros(999), 10, 400)
    with pytest.raises(ValueError, match="pass_share 0 must lie in"):
        sampler(pass_share=0)


def test_batches_of_another_size_are_the_same_passes():
    for one in (sampler(), CurriculumSampler(np.zeros(1000), 10, 400, start=1.0, seed=3)):
        one.ids(7)
        changed = one.drawing(lambda step: 15 if step < 20 else 10)
        assert len(changed.ids(7)) == 15
        changed.advance(900, 0.5)
        assert one.state_dict() == {"advances": []}
        assert [len(changed.ids(step)) for step in (0, 19, 20)] == [15, 15, 10]
        np.testing.assert_array_equal(drawn(changed, range(30)), drawn(one, range(40)))
        assert len(one.ids(0)) == 10
