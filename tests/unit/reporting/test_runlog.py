"""The run log survives what happens to files: NaN, torn lines, resumption."""

import json
import math

import numpy as np
import pytest
import torch

from bkray.config import UserError
from bkray.reporting.runlog import RunLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_lines_come_back_in_order_and_at_once(path):
    log = RunLog(path)
    log.log(1, loss=2.5, tokens=10)
    assert RunLog.read(path) == [{"step": 1, "loss": 2.5, "tokens": 10}]
    RunLog(path).log(2, loss=2.25)
    assert [row["step"] for row in RunLog.read(path)] == [1, 2]


def test_what_is_not_finite_is_null_and_the_json_is_strict(path):
    RunLog(path).log(1, loss=math.nan, low=-math.inf, inner={"a": [math.inf, 1.0]}, numpy=np.float32("nan"))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "low": None, "inner": {"a": [None, 1.0]}, "numpy": None}


def test_numpy_scalars_and_tensors_are_numbers(path):
    RunLog(path).log(np.int64(3), loss=torch.tensor(0.5), share=np.float64(0.25), done=np.bool_(True))
    assert RunLog.read(path) == [{"step": 3, "loss": 0.5, "share": 0.25, "done": True}]


def test_what_json_cannot_hold_is_refused_and_writes_nothing(path):
    log = RunLog(path)
    with pytest.raises(TypeError):
        log.log(1, loss=object())
    assert not path.exists() or path.read_text() == ""


def test_truncate_after_drops_later_steps_only(path):
    log = RunLog(path)
    for step in range(1, 7):
        log.log(step, loss=1.0 / step)
    before = path.read_text().splitlines()
    assert log.truncate_after(4) == {"step": 6, "loss": 1.0 / 6}
    assert log.truncate_after(4) is None
    assert path.read_text().splitlines() == before[:4]
    log.log(5, loss=9.0)
    assert RunLog.read(path)[-1] == {"step": 5, "loss": 9.0}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_truncate_after_without_a_log_makes_none(path):
    RunLog(path).truncate_after(3)
    assert not path.exists()


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}'])
def test_a_torn_last_line_is_dropped_and_not_written_onto(path, torn):
    log = RunLog(path)
    log.log(1, loss=1.0)
    log.log(2, loss=1.0)
    with path.open("a") as file:
        file.write(torn)
    assert [row["step"] for row in RunLog.read(path)] == [1, 2]
    RunLog(path).log(3, loss=0.5)
    assert RunLog.read(path)[2:] == [{"step": 3, "loss": 0.5}]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1.0}', ""])
def test_a_damaged_line_is_named(path, line):
    RunLog(path).log(1, loss=1.0)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 2"):
        RunLog.read(path)


def test_a_line_that_cannot_be_written_names_the_log_and_the_step(path):
    log = RunLog(path)
    path.parent.rmdir()
    with pytest.raises(UserError, match=r"metrics.jsonl: step 7 could not be written .*: mend that"):
        log.log(7, loss=1.0)
