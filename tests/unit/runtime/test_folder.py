"""Whose a folder of results is."""

import pytest

from bkray.config import UserError
from bkray.runtime.folder import COMPARISON, LOOP, RUN, SWEEP, check_identity, check_kind, claimed, locked

KINDS = {RUN: "run", SWEEP: "sweep", COMPARISON: "comparison", LOOP: "loop"}


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("wanted", KINDS)
def test_a_folder_of_another_kind_is_refused(tmp_path, there, wanted):
    (tmp_path / there).write_text("its own")
    (tmp_path / ".lock").touch()
    if there == wanted:
        check_kind(tmp_path / wanted)
        return
    with pytest.raises(UserError, match=f"holds a {KINDS[there]}, not a {KINDS[wanted]}: choose another"):
        check_identity(tmp_path / wanted, "its own")


def test_what_bkray_did_not_make_is_refused_and_an_empty_folder_is_not(tmp_path):
    check_kind(tmp_path / "new" / SWEEP)
    check_kind(tmp_path / SWEEP)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no sweep of bkray"):
        check_kind(tmp_path / SWEEP)


def test_the_folder_of_another_specification_is_refused(tmp_path):
    (tmp_path / COMPARISON).write_text("one")
    check_identity(tmp_path / COMPARISON, "one")
    with pytest.raises(UserError, match="holds another comparison of this name"):
        check_identity(tmp_path / COMPARISON, "other")


@pytest.mark.parametrize(
    ("error", "begun", "kept"),
    [(UserError, False, False), (UserError, True, True), (RuntimeError, False, True), (None, False, True)],
)
def test_a_claim_ends_where_there_is_something_to_mend_before_the_training(tmp_path, error, begun, kept):
    def work():
        assert (tmp_path / SWEEP).read_text() == "one"
        if begun:
            (tmp_path / "trials").mkdir()
        if error:
            raise error("text too small")

    def claim():
        with locked(tmp_path), claimed(tmp_path / SWEEP, "one", tmp_path / "trials"):
            work()

    if error:
        with pytest.raises(error):
            claim()
    else:
        claim()
    assert (tmp_path / SWEEP).exists() == kept
