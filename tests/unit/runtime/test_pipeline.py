"""Whose folder it is, and what is said of a stage that stands still."""

import pytest
from ray.data.exceptions import ExecutionTimeoutError
from rich.console import Console

from bkray.config import UserError, dump_yaml, load_recipe, parse_recipe
from bkray.reporting.progress import Progress
from bkray.runtime.pipeline import build_stage, check_folder, plan_run


def recipe(**training):
    return parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "training": training})


def test_a_run_goes_on_with_other_workers_and_not_as_another_recipe(tmp_path):
    (tmp_path / "resolved.yaml").write_text(dump_yaml(recipe()))
    check_folder(tmp_path, recipe(workers=4, parallel="zero1", accumulate=2))
    with pytest.raises(UserError, match=r"training.lr: 0.003 there, 0.1 now"):
        check_folder(tmp_path, recipe(workers=4, lr=0.1))


def test_a_stage_that_stands_still_is_named(small, tmp_path):
    def builder(_):
        raise ExecutionTimeoutError("no progress")

    plan = plan_run(load_recipe(small), tmp_path)
    with pytest.raises(UserError, match="documents: not one block of rows was done in"):
        build_stage(plan, plan.stages["documents"], {}, 2, Progress(Console(quiet=True)), builder)
