import math

import pytest

from bkray.curriculum import DifficultyAdjuster


def test_the_pacing_moves_ahead_only_on_a_plateau():
    adjuster = DifficultyAdjuster(patience=2, acceleration=0.25, min_delta=0.01)
    assert [adjuster.update(loss) for loss in (3.0, 2.5, 2.4)] == [0.0, 0.0, 0.0]
    assert adjuster.update(2.395) == 0.0  # an improvement below min_delta does not count
    assert adjuster.update(2.395) == 0.25
    assert adjuster.update(1.0) == 0.25  # a better loss takes nothing back


def test_it_never_passes_one():
    adjuster = DifficultyAdjuster(patience=1, acceleration=0.4)
    values = [adjuster.update(1.0) for _ in range(10)]
    assert max(values) == 1.0
    assert values == sorted(values)


def test_state_round_trips():
    losses = [2.0, 1.9, 1.9, 1.9, 1.9, 1.8, 1.8, 1.8]
    whole, first, second = (DifficultyAdjuster(patience=2) for _ in range(3))
    expected = [whole.update(loss) for loss in losses]
    for loss in losses[:4]:
        first.update(loss)
    second.load_state_dict(first.state_dict())
    assert [second.update(loss) for loss in losses[4:]] == expected[4:]


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        DifficultyAdjuster().update(math.nan)
    with pytest.raises(ValueError, match="patience 0"):
        DifficultyAdjuster(patience=0)
