"""The result of a run of a sweep or comparison counts for the settings that it was made with."""

from pathlib import Path

import pytest

from bkray.config import parse_recipe
from bkray.runtime.plan import make_plan
from bkray.runtime.training import Job
from bkray.runtime.trials import read_result, run_key, write_result


@pytest.mark.parametrize("changed", [{"seed": 1}, {"training": {"lr": 1e-4}}, {"window": 128}])
def test_a_result_is_that_of_its_own_settings_only(tmp_path, changed):
    base = {"name": "t", "corpus": {"kind": "docstrings"}}
    recipe, other = parse_recipe(base), parse_recipe({**base, **changed})
    plan, other_plan = (make_plan(each, (), tmp_path) for each in (recipe, other))
    assert read_result(plan, recipe) is None
    job = Job(recipe, run_key(plan, recipe), [], [], Path(), tmp_path, tmp_path / "model")
    job.checkpoints.mkdir()
    write_result(job, {"steps": 3})
    assert read_result(plan, recipe) == {"steps": 3}
    assert read_result(other_plan, other) is None
    assert not job.checkpoints.exists()
