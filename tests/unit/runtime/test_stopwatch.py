import shutil
import subprocess
import sys
import time

import pytest

from bkray.runtime.stopwatch import Stopwatch, counting, noted_seconds, process_seconds


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


def test_pauses_do_not_count_and_what_is_kept_goes_on(tmp_path):
    path = tmp_path / "startup"
    assert noted_seconds(path) == 0
    with counting(path, earlier=100, keep=True) as watch:
        with watch.paused():
            time.sleep(0.3)
            inside = watch.seconds
        assert inside == pytest.approx(100, abs=0.2)
    assert noted_seconds(path) == pytest.approx(100, abs=0.2)
    with counting(path, earlier=10, keep=True):
        pass
    assert noted_seconds(path) == pytest.approx(110, abs=0.4)


def test_a_pause_ends_where_its_block_fails(tmp_path):
    watch = Stopwatch(tmp_path / "startup")
    with pytest.raises(ZeroDivisionError), watch.paused():
        assert 1 / 0
    before = watch.seconds
    time.sleep(0.1)
    assert watch.seconds - before >= 0.1


def test_a_process_knows_how_long_it_is_there():
    code = (
        "import time; time.sleep(0.5); from bkray.runtime.stopwatch import process_seconds as s; print(s())"
    )
    began = time.perf_counter()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.5 <= float(printed) <= time.perf_counter() - began + 0.02
    assert process_seconds() > 0
