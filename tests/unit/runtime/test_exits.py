import errno
import pickle
import signal

import pytest
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import WorkerCrashedError

from bkray.config import UserError
from bkray.runtime.exits import exit_codes, find_user_error


def chained(inner, outer):
    try:
        try:
            raise inner
        except type(inner) as error:
            raise outer from error
    except type(outer) as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("mend it"), 2, "error: mend it\n"),
        (KeyError("gone"), 1, "this is a fault of bkray, not of your recipe: please report it"),
        (KeyboardInterrupt(), 130, "interrupted; what is finished is kept"),
    ],
)
def test_each_end_has_its_code_and_only_a_fault_of_ours_a_traceback(capsys, error, code, said):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise error
    signal.signal(signal.SIGTERM, before)
    stderr = capsys.readouterr().err
    assert ended.value.code == code
    assert said in stderr
    assert ("Traceback" in stderr) == (code == 1)


def test_what_the_user_can_mend_is_found_behind_other_errors():
    assert str(find_user_error(chained(UserError("mend it"), ValueError("no")))) == "mend it"
    assert find_user_error(chained(OSError(errno.EIO, "torn"), ValueError("no"))) is None


def test_what_others_add_to_it_is_not_said():
    """Ray Data adds its advice on retries to the arguments, and a worker's error comes pickled."""
    error = UserError("mend it")
    error.args = (f"{error.args[0]}\nset retried_map_errors if you believe this to be transient",)
    assert str(find_user_error(pickle.loads(pickle.dumps(error)))) == "mend it"


def test_a_full_disk_is_for_the_user_to_mend():
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    said = str(find_user_error(chained(full, RuntimeError("worker failed"))))
    assert "No space left on device: 'metrics.jsonl': free some space" in said
    advised = OSError(errno.ENOSPC, "No space left on device")
    advised.args += ("Failed to apply UDF\nset retried_map_errors",)
    said = str(find_user_error(pickle.loads(pickle.dumps(advised))))
    assert said.startswith("[Errno 28] No space left on device: free some space")


def test_a_stage_that_stands_still_is_no_fault_of_the_program():
    said = str(find_user_error(chained(ExecutionTimeoutError("no progress for 300 s"), ValueError("failed"))))
    assert said.startswith("a stage: not one block of rows was done in")
    assert "a machine was lost" in said
    assert "run the same command again" in said
    assert "memory" not in said


def test_a_lost_process_is_no_fault_of_the_program():
    said = str(find_user_error(chained(WorkerCrashedError(), RuntimeError("a stage failed"))))
    assert said.startswith("WorkerCrashedError: The worker died unexpectedly")
    assert "run the same command again" in said
