"""Whose folder it is."""

import pytest

from bkray.config import UserError, dump_yaml, parse_recipe
from bkray.runtime.pipeline import check_folder


def recipe(**training):
    return parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "training": training})


def test_a_run_goes_on_with_other_workers_and_not_as_another_recipe(tmp_path):
    (tmp_path / "resolved.yaml").write_text(dump_yaml(recipe()))
    check_folder(tmp_path, recipe(workers=4, parallel="zero1", accumulate=2))
    with pytest.raises(UserError, match=r"training.lr: 0.003 there, 0.1 now"):
        check_folder(tmp_path, recipe(workers=4, lr=0.1))
