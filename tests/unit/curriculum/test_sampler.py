import numpy as np
import pytest

from bkray.curriculum import CurriculumSampler

DIFFICULTY = np.random.default_rng(0).normal(size=1000)


def sampler(**changes):
    settings = {"batch_size": 12, "total_steps": 100, "pacing": "linear", "start": 0.2, "seed": 3}
    return CurriculumSampler(DIFFICULTY, **{**settings, **changes})


def test_ids_are_a_pure_function_of_the_step():
    forward = [sampler().ids(step) for step in range(150)]
    one = sampler()
    for step in np.random.default_rng(1).permutation(150)[:40]:
        np.testing.assert_array_equal(one.ids(int(step)), forward[step])
    assert any(
        (a != b).any() for a, b in zip(forward, (sampler(seed=4).ids(s) for s in range(150)), strict=True)
    )


def test_only_the_easiest_available_windows_are_drawn():
    one = sampler()
    rank_of = np.empty(1000, dtype=int)
    rank_of[np.argsort(DIFFICULTY)] = np.arange(1000)
    hardest = [rank_of[one.ids(step)].max() for step in range(100)]
    assert all(hard < one.available(step) for step, hard in enumerate(hardest))
    assert hardest[0] < 210
    assert max(hardest[95:]) > 900
    assert one.available(0) == 200
    assert one.available(100) == 1000


def test_a_pass_visits_every_window_once():
    one = CurriculumSampler(np.zeros(100), 8, 50, start=1.0)
    drawn = np.concatenate([one.ids(step) for step in range(25)])
    np.testing.assert_array_equal(np.sort(drawn[:100]), np.arange(100))
    np.testing.assert_array_equal(np.sort(drawn[100:200]), np.arange(100))
    assert (drawn[:100] != drawn[100:200]).any()


def test_growth_does_not_repeat_a_window_before_the_others_had_their_turn():
    one = sampler(
        batch_size=5, total_steps=200
    )  # 1,000 draws for 1,000 windows, the pool grows all the while
    visits = np.bincount(np.concatenate([one.ids(step) for step in range(200)]), minlength=1000)
    assert visits.max() <= 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_the_ranks_parts_together_are_the_global_batch(world_size):
    one = sampler()
    for step in (0, 7, 99):
        parts = [one.ids(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(parts), one.ids(step))


def test_a_batch_larger_than_the_corpus_repeats_it():
    one = CurriculumSampler(np.arange(3.0), 8, 10, start=1.0)
    assert np.bincount(one.ids(0), minlength=3).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_an_advance_makes_more_available_from_its_step_on_and_survives_a_restart():
    plain, one = sampler(), sampler()
    one.ids(60)
    one.advance(40, 0.5)
    np.testing.assert_array_equal(one.ids(39), plain.ids(39))
    assert one.share(39) == plain.share(39)
    assert one.share(40) == pytest.approx(min(1.0, plain.share(40) + 0.4))
    one.advance(45, 0.1)  # less than what was given already
    assert one.share(45) >= one.share(44)
    other = sampler()
    other.load_state_dict(one.state_dict())
    for step in (39, 40, 41, 70):
        np.testing.assert_array_equal(other.ids(step), one.ids(step))


def test_an_advance_takes_one_draw_back_and_does_not_draw_all_again(monkeypatch):
    """The loop reads one step ahead; on a long run to draw all again would hold a step up for seconds."""
    one, drawn, draw = sampler(), [], CurriculumSampler._draw
    monkeypatch.setattr(CurriculumSampler, "_draw", lambda self, step: drawn.append(step) or draw(self, step))
    one.ids(60)
    drawn.clear()
    one.advance(60, 0.5)
    again = [one.ids(step) for step in (59, 60, 61)]
    assert drawn == [60, 61]
    other = sampler()
    other.advance(60, 0.5)
    for step, ids in zip((59, 60, 61), again, strict=True):
        np.testing.assert_array_equal(other.ids(step), ids)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="multiple of the world size"):
        sampler().ids(0, rank=0, world_size=5)
    with pytest.raises(ValueError, match="window 1 is not finite"):
        CurriculumSampler(np.array([0.0, np.nan]), 1, 1)
    with pytest.raises(ValueError, match="one score a window"):
        CurriculumSampler(np.zeros(0), 1, 1)
