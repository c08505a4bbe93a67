import math

import numpy as np
import pytest

from bkray.evaluation import rank_correlation


def test_only_the_order_counts():
    values = np.random.default_rng(0).standard_normal(50)
    assert rank_correlation(values, np.exp(3 * values)) == pytest.approx(1.0)
    assert rank_correlation(values, -(values**3)) == pytest.approx(-1.0)


def test_equal_values_share_their_rank():
    found = rank_correlation(np.array([1, 1, 2, 3]), np.array([1, 2, 2, 9]))
    ranks = [1.5, 1.5, 3, 4], [1, 2.5, 2.5, 4]
    assert found == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_what_does_not_vary_orders_nothing():
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5)))
    assert math.isnan(rank_correlation(np.array([1.0]), np.array([2.0])))
