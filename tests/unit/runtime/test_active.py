"""What the controls of active learning may spend, and what a round is charged with."""

from pathlib import Path

from bkray.runtime.active import equal_steps
from bkray.runtime.artifacts import Artifact
from bkray.runtime.rounds import DoneRound, _less
from bkray.training import Ledger


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
