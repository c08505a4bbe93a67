"""Trackers get what the log gets, once, also after a resume; one that fails stops nothing."""

import importlib.util
import math
import os
import struct
import time

import pytest

from bkray.config import UserError
from bkray.reporting import RunLog
from bkray.reporting.trackers import TrackedLog, check_trackers, redacted, tracked_log

KINDS = ["tensorboard", "wandb", "mlflow"]
RECIPE = {"name": "t", "corpus": {"path": "s3://me:hunter2@host/a?key=hunter2"}, "training": {"lr": 0.5}}


@pytest.fixture(autouse=True)
def private(monkeypatch, tmp_path):
    """No test reaches a network or the files of another one."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a run"  # trackers take paths with blanks
    run.mkdir()
    return run


@pytest.fixture(params=KINDS)
def kind(request):
    needed(request.param)
    return request.param


def needed(*kinds):
    """Skip the test where a tracker's package is not installed."""
    packages = {"tensorboard": ["tensorboardX"], "wandb": ["wandb"], "mlflow": ["mlflow", "sqlalchemy"]}
    for kind in kinds:
        for package in packages[kind]:
            pytest.importorskip(package)


def opened(run, *kinds, key="k"):
    return tracked_log(run / "metrics.jsonl", kinds, "t", key, RECIPE, run / "notes.log")


def logged(kind, run):
    """[(step, values)] that the tracker holds, in order of steps; a step twice is there twice."""
    rows = {"tensorboard": in_event_files, "wandb": in_offline_runs, "mlflow": in_store}[kind](run)
    return sorted(rows, key=lambda row: row[0])


def in_event_files(run):
    """As TensorBoard reads them: a start at a step hides what came before of that step and later ones."""
    rows = []
    for path in sorted((run / "tensorboard").iterdir()):
        for event in events(path.read_bytes()):
            if event.HasField("session_log"):
                rows = [row for row in rows if row[0] < event.step]
            if event.HasField("summary"):
                rows.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
    return rows


def events(data):
    """Records of the TFRecord format: length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield Event.FromString(data[at + 12 : at + 12 + length])
        at += length + 16


def in_offline_runs(run):
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    histories = [
        {item.key or item.nested_key[0]: float(item.value_json) for item in record.history.item}
        for path in files
        for record in records(path.read_bytes())
        if record.WhichOneof("record_type") == "history"
    ]
    return [(int(row["_step"]), {k: v for k, v in row.items() if k[0] != "_"}) for row in histories]


def records(data):
    """Records of a LevelDB log behind a header of seven bytes: blocks of 32 KiB, records in fragments."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, fragment = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if fragment in {1, 4}:  # the whole record, or its last fragment
            yield Record.FromString(whole)
            whole = b""


def mlflow_runs(run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name("bkray").experiment_id])


def in_store(run):
    client, (found,) = mlflow_runs(run)
    rows = {}
    for name in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, name):
            rows.setdefault(metric.step, []).append((name, metric.value))
    doubled = max(len(values) - len(dict(values)) for values in rows.values())
    return [(step, dict(values)) for step, values in rows.items()] * (1 + doubled)


def losses(steps):
    return [(step, {"loss": pytest.approx(1.0 / step)}) for step in steps]


# --- what goes in ----------------------------------------------------------------------------------


def test_finite_numbers_come_back(kind, private):
    with opened(private, kind) as log:
        log.truncate_after(0)
        log.log(10, loss=2.5, total_flops=2**70, low=math.nan, note="text", inner={"a": 1})
        log.log(20, loss=2.25)
    flops = pytest.approx(2.0**70)
    assert logged(kind, private) == [(10, {"loss": 2.5, "total_flops": flops}), (20, {"loss": 2.25})]
    assert [row["step"] for row in RunLog.read(log.path)] == [10, 20]
    assert not log.notes.exists()
    assert sorted(path.name for path in private.parent.iterdir()) == ["a run"], (
        "files beside the run's folder"
    )


def test_a_resumed_run_goes_on_in_the_same_one_without_a_line_twice(kind, private):
    """The first attempt dies at step 7, and step 4 was the last checkpoint."""
    first = opened(private, kind)
    first.truncate_after(0)
    for step in range(1, 8):
        first.log(step, loss=1.0 / step)
    first.close(failed=True)
    time.sleep(1.1)  # folders of offline runs are named by the second
    with opened(private, kind) as second:
        assert second.truncate_after(4) == {"step": 7, "loss": 1.0 / 7}
        for step in range(5, 10):
            second.log(step, loss=1.0 / step)
    assert logged(kind, private) == losses(range(1, 10))
    if kind == "mlflow":
        assert mlflow_runs(private)[1][0].info.status == "FINISHED"


def test_a_resumed_run_sends_what_the_tracker_lacks(kind, private):
    log = opened(private)
    for step in range(1, 8):
        log.log(step, loss=1.0 / step)
    with opened(private, kind) as second:
        second.truncate_after(4)
        second.log(5, loss=1.0 / 5)
    assert logged(kind, private) == losses(range(1, 6))


def test_another_key_is_another_run(private):
    needed("mlflow")
    for key in ("a", "b", "b"):
        with opened(private, "mlflow", key=key) as log:
            log.truncate_after(0)
            log.log(1, loss=1.0)
    _, runs = mlflow_runs(private)
    assert len(runs) == 2


def test_tensorboard_itself_hides_what_is_done_again(private):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for done, steps in ((0, range(1, 8)), (4, range(5, 7))):
        with opened(private, "tensorboard") as log:
            log.truncate_after(done)
            for step in steps:
                log.log(step, loss=1.0 / step)
    read = accumulator.EventAccumulator(str(private / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == list(range(1, 7))


def test_the_recipe_arrives_without_secrets(private):
    needed("wandb", "mlflow")
    with opened(private, "wandb", "mlflow") as log:
        log.truncate_after(0)
        log.log(1, loss=1.0)
    params = mlflow_runs(private)[1][0].data.params
    assert params == {"name": "t", "corpus.path": "s3://***@host/a?***", "training.lr": "0.5"}
    texts = [path.read_bytes() for path in private.rglob("*") if path.is_file()]
    assert any(b"s3://***@host/a?***" in text for text in texts)
    assert not any(b"hunter2" in text for text in texts)


def test_the_command_line_is_kept_from_wandb(private, monkeypatch):
    """That of a Ray worker holds a password."""
    needed("wandb")
    monkeypatch.setattr("sys.argv", ["worker", "--redis-password=hunter2"])
    with opened(private, "wandb") as log:
        log.truncate_after(0)
        log.log(1, loss=1.0)
    assert logged("wandb", private) == losses([1])
    assert not any(b"hunter2" in path.read_bytes() for path in private.rglob("*") if path.is_file())


# --- what goes wrong -------------------------------------------------------------------------------


class Failing:
    """A tracker whose network is gone at `at`."""

    def __init__(self, at):
        self.at, self.steps = at, []

    def log(self, step, /, **values):
        if self.at == step:
            raise ConnectionError("no route to https://me:hunter2@host/x?key=hunter2\nsecond line")
        self.steps.append(step)

    def truncate_after(self, step):
        if self.at == "truncate":
            raise ConnectionError("no route")
        return step

    def close(self, failed=False):
        if self.at == "close":
            raise ConnectionError("no route")
        self.failed = failed


def opener_that_fails():
    raise ConnectionError("no route")


@pytest.mark.parametrize("at", ["open", "truncate", 2, "close"])
def test_a_tracker_that_fails_says_why_once_and_the_others_go_on(private, at):
    bad, good = Failing(at), Failing(None)
    openers = {"wandb": opener_that_fails if at == "open" else lambda: bad, "mlflow": lambda: good}
    with TrackedLog(private / "metrics.jsonl", openers, private / "notes.log") as log:
        log.truncate_after(0)
        for step in (1, 2, 3):
            log.log(step, loss=1.0)
    assert [row["step"] for row in RunLog.read(log.path)] == good.steps == [1, 2, 3]
    assert bad.steps == {"open": [], "truncate": [], 2: [1], "close": [1, 2, 3]}[at]
    assert not good.failed
    (note,) = log.notes.read_text().splitlines()
    assert note.startswith("wandb is left out from here on: ConnectionError: no route")
    assert "hunter2" not in note


def test_a_run_that_fails_is_closed_as_failed(private):
    good = Failing(None)
    with (
        pytest.raises(UserError, match="diverged"),
        TrackedLog(private / "metrics.jsonl", {"wandb": lambda: good}, private / "notes.log"),
    ):
        raise UserError("training diverged")
    assert good.failed


def test_a_server_that_is_not_there(private, monkeypatch):
    needed("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with opened(private, "mlflow") as log:
        log.truncate_after(0)
        log.log(1, loss=1.0)
    assert [row["step"] for row in RunLog.read(log.path)] == [1]
    note = log.notes.read_text()
    assert "mlflow is left out" in note
    assert "Connection refused" in note
    assert "hunter2" not in note


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named(kind, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    package = {"tensorboard": "tensorboardX"}.get(kind, kind)
    with pytest.raises(
        UserError, match=rf"{kind} needs the package {package}, .*pip install 'bkray\[trackers\]'"
    ):
        check_trackers([kind])


def test_a_folder_is_no_package(private, monkeypatch):
    """W&B leaves a folder `wandb` where a script was started."""
    (private / "not_a_package").mkdir()
    monkeypatch.syspath_prepend(str(private))
    monkeypatch.setattr("bkray.reporting.trackers._packages", lambda kind: ("not_a_package",))
    with pytest.raises(UserError, match="not_a_package"):
        check_trackers(["wandb"])


def test_without_trackers_nothing_is_needed_or_made(private):
    check_trackers([])
    with opened(private) as log:
        log.log(1, loss=1.0)
    assert [path.name for path in private.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("see http://me:pw@host:5000/a?token=x now", "see http://***@host:5000/a?*** now"),
        ("https://key@host", "https://***@host"),
        ("sqlite:////a/b@c.db and why? because", "sqlite:////a/b@c.db and why? because"),
        ("a@b.c", "a@b.c"),
    ],
)
def test_redacted(text, left):
    assert redacted(text) == left
