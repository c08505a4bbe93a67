import math

import pytest

from bkray.evaluation import Saving, break_even, cost_to_reach


def test_log_cost_is_interpolated_between_the_budgets_around_the_level():
    assert cost_to_reach(1.5, [1e9, 1e11], [2.0, 1.0]) == pytest.approx(1e10)
    assert cost_to_reach(1.0, [1.0, 2.0, 4.0], [2.0, 1.0, 0.5]) == pytest.approx(2.0)
    assert cost_to_reach(0.75, [1.0, 2.0, 4.0], [2.0, 1.0, 0.5]) == pytest.approx(math.sqrt(8))


def test_nothing_is_extrapolated():
    assert cost_to_reach(0.4, [1.0, 2.0], [2.0, 0.5]) is None
    assert cost_to_reach(3.0, [1.0, 2.0], [2.0, 0.5]) == 1.0  # a bound


def test_a_curve_that_rises_again_has_reached_the_level_where_it_stays_below_it():
    assert cost_to_reach(1.0, [1.0, 2.0, 4.0, 8.0], [1.5, 0.9, 1.2, 0.8]) == pytest.approx(4 * math.sqrt(2))


def test_a_run_that_diverged_reaches_nothing():
    assert cost_to_reach(1.0, [1.0, 2.0, 4.0], [1.5, math.nan, 0.5]) == 4.0
    assert cost_to_reach(1.0, [1.0, 2.0], [0.5, math.inf]) is None


@pytest.mark.parametrize("costs", [[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0], []])
def test_costs_that_do_not_grow_are_refused(costs):
    with pytest.raises(ValueError, match="must grow"):
        cost_to_reach(1.0, costs, [2.0, 0.5])


@pytest.mark.parametrize(
    ("shared", "own", "alternative", "targets"),
    [(10.0, 1.0, 6.0, 2), (10.1, 1.0, 6.0, 3), (1.0, 1.0, 6.0, 1), (0.0, 1.0, 6.0, 1), (1.0, 6.0, 6.0, None)],
)
def test_break_even(shared, own, alternative, targets):
    assert break_even(shared, own, alternative) == targets


def test_each_seed_is_held_against_the_level_of_its_own_comparator():
    saving = Saving.of(
        [(8.0, 1.0), (16.0, 0.75)], [[(1.0, 2.0), (4.0, 0.5)], [(4.0, 0.5), (2.0, 1.0), (1.0, 2.0)]]
    )
    assert saving.own == pytest.approx((4 ** (2 / 3), math.sqrt(8)))
    assert not saving.at_most
    assert saving.ratio == pytest.approx(math.sqrt(8.0 / saving.own[0] * 16.0 / saving.own[1]))


def test_a_level_that_a_seed_does_not_reach_is_no_saving():
    saving = Saving.of([(8.0, 1.0), (8.0, 0.4)], [[(1.0, 2.0), (4.0, 0.5)]] * 2)
    assert saving.own[0] is not None
    assert (saving.own[1], saving.missed) == (None, 1)
    assert saving.cost is saving.ratio is saving.interval is saving.with_more(1.0) is None
    assert saving.break_even(1.0) is None
    assert saving.comparator_cost == 8.0


def test_a_level_below_which_even_the_smallest_budget_lies_gives_a_bound():
    reached = [(2.0, 0.9), (4.0, 0.5)]
    saving = Saving.of([(8.0, 1.0), (8.0, 0.8)], [reached, reached])
    assert saving.at_most
    assert saving.own[0] == 2.0
    assert not Saving.of([(8.0, 0.8)], [reached]).at_most


def test_one_seed_has_a_ratio_and_no_interval():
    saving = Saving.of([(8.0, 0.5)], [[(1.0, 1.0), (4.0, 0.5)]])
    assert saving.ratio == pytest.approx(2.0)
    assert saving.interval is None
    assert saving.break_even(7.0) == 2


def test_seeds_that_agree_have_a_narrow_interval_and_seeds_that_disagree_one_that_reaches_below_1():
    agreeing = Saving((4.0, 8.0, 6.0), (1.0, 2.0, 1.5))
    assert agreeing.interval.ratio == pytest.approx((4.0, 4.0, 4.0))
    disagreeing = Saving((4.0, 8.0, 6.0), (0.5, 1.0, 12.0))
    mean, low, high = disagreeing.interval.ratio
    assert disagreeing.ratio == pytest.approx(mean) == pytest.approx(32.0 ** (1 / 3))
    assert low < 1.0 < mean < high


def test_what_is_spent_beside_is_paid_in_full():
    saving = Saving((10.0, 14.0), (1.0, 3.0))
    assert saving.with_more(22.0) == pytest.approx(12.0 / 24.0)
    assert saving.with_more(4.0, 6.0) == pytest.approx(18.0 / 6.0)
    assert saving.break_even(21.0) == 3
    assert Saving((1.0,), (2.0,)).break_even(21.0) is None


def test_targets_together_add_up_seed_by_seed():
    both = Saving.together([Saving((4.0, 6.0), (1.0, 2.0)), Saving((40.0, 60.0), (10.0, 30.0), at_most=True)])
    assert both == Saving((44.0, 66.0), (11.0, 32.0), at_most=True)
    assert Saving.together([both, Saving((1.0, 1.0), (1.0, None))]).own == (12.0, None)


def test_arms_of_other_seeds_are_refused():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Saving.of([(8.0, 1.0), (8.0, 1.0)], [[(1.0, 0.5)]])
