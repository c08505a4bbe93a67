"""What the controls of active learning may spend, and what a round is charged with."""

from pathlib import Path

import numpy as np
import pytest

from bkray.config import UserError
from bkray.config.preparation import Selection
from bkray.runtime.active import equal_steps
from bkray.runtime.artifacts import Artifact
from bkray.runtime.rounds import DoneRound, _less, check_pools
from bkray.selection import ActiveLearningLoop
from bkray.training import Ledger


def test_a_round_without_a_choice_is_refused_before_anything_is_trained():
    few = ActiveLearningLoop(np.arange(10), start=0.1, pool=0.4, keep=0.5, rounds=4)
    assert few.pool_sizes() == [4, 4, 4, 3]
    check_pools(few, Selection(kind="entropy", keep=0.5))
    fewer = ActiveLearningLoop(np.arange(5), start=0.1, pool=0.4, keep=0.5, rounds=4)
    with pytest.raises(
        UserError, match=r"round 4 scores 1 of 5 windows: selection\.keep 0\.5 of 1 windows is all"
    ):
        check_pools(fewer, Selection(kind="entropy", keep=0.5))
    fewest = ActiveLearningLoop(np.arange(3), start=0.4, pool=1.0, keep=0.7, rounds=2)
    with pytest.raises(UserError, match=r"round 2 scores 1 of 3 windows"):
        check_pools(fewest, Selection(kind="random", keep=0.7))


def artifact(**flops):
    ledger = {kind: {"flops": amount, "tokens": 1, "seconds": 1.0} for kind, amount in flops.items()}
    return Artifact(Path("there"), {"ledger": ledger})


def test_the_controls_train_for_what_was_scored_as_well():
    rounds = [
        DoneRound(artifact(training=80.0, optimizer=20.0), windows=10, steps=40),
        DoneRound(
            artifact(training=80.0, optimizer=20.0),
            windows=20,
            steps=60,
            selecting={
                "pool": artifact(),
                "scored": artifact(scoring=30.0),
                "selected": artifact(cluster=20.0),
            },
        ),
    ]
    assert equal_steps(100, rounds) == 125  # 250 of FLOPs at 2 a step


def test_what_an_interruption_cost_gives_the_controls_no_steps():
    scored = {"scored": artifact(scoring=50.0)}
    plain, killed = (
        [DoneRound(artifact(training=100.0, **again), windows=1, steps=9, selecting=scored)]
        for again in ({}, {"lost": 70.0, "settling": 5.0})
    )
    assert equal_steps(100, killed) == equal_steps(100, plain) == 150


def test_a_round_is_charged_with_what_came_after_the_round_before():
    before = Ledger({"training": {"flops": 5.0, "tokens": 10, "seconds": 1.0}})
    after = Ledger(before.table())
    after.charge("training", flops=7.0, tokens=20, seconds=2.0)
    after.charge("lost", flops=3.0, tokens=4, seconds=0.5)
    own = _less(after, before.table())
    assert own.table() == {
        "training": {"flops": 7.0, "tokens": 20, "seconds": 2.0},
        "lost": {"flops": 3.0, "tokens": 4, "seconds": 0.5},
    }
    assert _less(before, after.table()).total_flops == 0.0  # made anew on a faster way
