import threading

import pytest

from bkray.training.ahead import Ahead


def test_the_next_one_is_made_while_this_one_is_worked_on():
    made = {step: threading.Event() for step in range(4)}
    callers = set()

    def make(step):
        callers.add(threading.get_ident())
        made[step].set()
        return step * 10

    ahead = Ahead(make, end=3)
    for step in range(3):
        assert ahead.take(step) == step * 10
        assert step == 2 or made[step + 1].wait(timeout=10)
    assert not made[3].is_set(), "there is no step 3"
    assert threading.get_ident() not in callers
    assert len(callers) == 1


def test_what_was_made_before_a_change_is_forgotten():
    scale, calls = 1, []

    def make(step):
        calls.append(step)
        return step * scale

    ahead = Ahead(make, end=10)
    assert ahead.take(1) == 1
    ahead.drop()
    assert calls == [1, 2], "nothing is being made any more"
    scale = 100
    assert ahead.take(2) == 200
    assert ahead.take(7) == 700, "another step than the next"


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def make(step):
        if step == 1:
            raise OSError("the disk is gone")
        return step

    ahead = Ahead(make, end=10)
    assert ahead.take(0) == 0
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(1)
