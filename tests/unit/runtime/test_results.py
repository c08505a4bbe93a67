from bkray.runtime.results import _notes


def test_what_two_attempts_noted_is_one_note(tmp_path):
    assert _notes(tmp_path) == []
    (tmp_path / "notes.log").write_text("off from step 3 on\nß\noff from step 3 on\n", encoding="utf-8")
    assert _notes(tmp_path) == ["off from step 3 on", "ß"]
