import errno

from ray.exceptions import WorkerCrashedError

from bkray.config import UserError
from bkray.runtime.exits import find_user_error


def chained(inner, outer):
    try:
        try:
            raise inner
        except type(inner) as error:
            raise outer from error
    except type(outer) as error:
        return error


def test_what_the_user_can_mend_is_found_behind_other_errors():
    assert str(find_user_error(chained(UserError("mend it"), ValueError("no")))) == "mend it"
    assert find_user_error(chained(OSError(errno.EIO, "torn"), ValueError("no"))) is None


def test_a_full_disk_is_for_the_user_to_mend():
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    said = str(find_user_error(chained(full, RuntimeError("worker failed"))))
    assert "No space left on device: 'metrics.jsonl': free some space" in said


def test_a_lost_process_is_no_fault_of_the_program():
    said = str(find_user_error(chained(WorkerCrashedError(), RuntimeError("a stage failed"))))
    assert said.startswith("WorkerCrashedError: The worker died unexpectedly")
    assert "run the same command again" in said
