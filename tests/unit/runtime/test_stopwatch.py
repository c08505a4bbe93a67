import shutil
import time

import pytest

from bkray.runtime.stopwatch import Stopwatch, counting


def test_the_seconds_of_a_failed_attempt_count_in_the_next(tmp_path):
    path = tmp_path / "stage-key"
    with pytest.raises(ZeroDivisionError), counting(path):
        assert time.sleep(0.2) or 1 / 0
    with counting(path) as watch:
        first = watch.seconds
    assert 0.2 <= first < 5
    assert list(tmp_path.iterdir()) == []
    with counting(path) as watch:
        assert watch.seconds < 0.2


def test_a_killed_attempt_leaves_what_it_noted(tmp_path):
    watch = Stopwatch(tmp_path / "stage-key")
    time.sleep(0.1)
    watch.note()
    assert 0.1 <= Stopwatch(tmp_path / "stage-key").seconds < 5


def test_a_disk_that_takes_no_seconds_is_said_once_and_hides_no_error(tmp_path, caplog):
    folder = tmp_path / "artifacts"

    def lose_the_disk(watch):
        shutil.rmtree(folder)
        watch.note()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), counting(folder / "stage-key") as watch:
        lose_the_disk(watch)
    (record,) = caplog.records
    assert "seconds of this attempt are not noted" in record.message
    assert list(tmp_path.iterdir()) == []
