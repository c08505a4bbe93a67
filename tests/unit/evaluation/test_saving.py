import math

import pytest

from bkray.evaluation import break_even, cost_to_reach


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
