"""A sweep's trials: recipes of one worker on its base recipe."""

import pytest

from bkray.config import UserError
from bkray.config.sweep import Choice, Sweep, trial_recipe

BASE = {"name": "t", "corpus": {"kind": "docstrings"}}


def test_trials_use_no_trackers_and_keep_the_rest():
    sweep = Sweep(name="s", recipe="r.yaml", space={"training.lr": Choice(kind="choice", values=(0.1,))})
    values = {**BASE, "training": {"trackers": ["tensorboard"], "clip": 2.0}}
    training = trial_recipe(sweep, values, {"training.lr": 0.1}, "trial").training
    assert (training.trackers, training.clip, training.lr) == ((), 2.0, 0.1)


def test_a_trial_looks_at_no_pool():
    sweep = Sweep(name="s", recipe="r.yaml", space={"seed": Choice(kind="choice", values=(0, 1))}, trials=2)
    values = {**BASE, "training": {"start_from": "m"}}
    trial_recipe(sweep, values, {}, "trial")
    with pytest.raises(UserError, match=r"evaluation\.pool has no effect on trials: set evaluation to null"):
        trial_recipe(sweep, {**values, "evaluation": {"pool": "r"}}, {}, "trial")
