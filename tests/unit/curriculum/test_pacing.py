from itertools import pairwise

import pytest

from bkray.curriculum import fraction

KINDS = ["linear", "exponential", "root", "step"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0.01, 0.3, 1.0])
def test_pacing_begins_at_start_never_falls_and_ends_at_one(kind, start):
    shares = [fraction(i / 200, kind, start) for i in range(201)]
    assert shares[0] == pytest.approx(start)
    assert shares[-1] == 1.0
    assert all(a <= b for a, b in pairwise(shares))


def test_closed_forms_half_way():
    assert fraction(0.5, "linear", 0.2) == pytest.approx(0.6)
    assert fraction(0.5, "root", 0.2) == pytest.approx((0.04 + 0.96 / 2) ** 0.5)
    assert fraction(0.5, "exponential", 0.25) == pytest.approx(0.5)
    assert fraction(0.5, "step", 0.2) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("progress", "kind", "start"), [(-0.1, "linear", 0.1), (1.1, "root", 0.1), (0, "linear", 0)]
)
def test_values_outside_their_range_are_refused(progress, kind, start):
    with pytest.raises(ValueError, match="must lie in"):
        fraction(progress, kind, start)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'quadratic' is unknown"):
        fraction(0.5, "quadratic")
