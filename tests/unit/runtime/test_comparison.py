"""What a comparison refuses before it has a cluster."""

import pytest

from bkray.config import UserError, parse_recipe
from bkray.runtime.comparison import Runs


def test_a_budget_that_is_too_short_for_an_arm_is_refused_by_its_name(tmp_path):
    values = {"name": "t", "corpus": {"kind": "docstrings"}, "model": {"kind": "resnet_bk"}}
    training = {"start_from": "m", "unfreeze": {"at": [0.1, 0.3, 0.5]}}
    recipe = parse_recipe({**values, "training": training})
    runs = Runs({"plain": parse_recipe(values), "tuned": recipe}, tmp_path)
    assert runs.recipe("tuned", 0.5, 100).steps == 100
    assert runs.recipe("tuned", 0.5, 100).training.lr == 0.5
    with pytest.raises(
        UserError, match=r"arm tuned for 5 steps:\n.*unfreeze.at .* are the steps \[0, 2, 2\]"
    ):
        runs.recipe("tuned", 0.5, 5)
    assert runs.recipe("plain", 0.5, 5).steps == 5
