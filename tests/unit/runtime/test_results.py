import json

import pytest

from bkray.config import parse_recipe
from bkray.runtime.plan import make_plan
from bkray.runtime.results import _notes, has_results


def test_what_two_attempts_noted_is_one_note(tmp_path):
    assert _notes(tmp_path) == []
    (tmp_path / "notes.log").write_text("off from step 3 on\nß\noff from step 3 on\n", encoding="utf-8")
    assert _notes(tmp_path) == ["off from step 3 on", "ß"]


@pytest.mark.parametrize("left_out", ["", "report.html", "summary.json", "key"])
def test_results_of_other_text_are_none_of_this_plan(tmp_path, left_out):
    """A run that was finished, made anew on changed text, and killed before it wrote its results."""
    plan = make_plan(parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}}), (), tmp_path)
    key = "another" if left_out == "key" else plan.stages["evaluation"].key
    (tmp_path / "report.html").write_text("<html>")
    (tmp_path / "summary.json").write_text(json.dumps({"key": key}))
    if left_out not in ("", "key"):
        (tmp_path / left_out).unlink()
    assert has_results(plan, tmp_path) == (not left_out)
