"""Experiment trackers beside the run log: TensorBoard, Weights & Biases, MLflow; none is imported unused.

    training loop ─► TrackedLog ─┬─► metrics.jsonl, always
                                 └─► each tracker, a copy of it: one that fails stops, training goes on

A resumed run goes on in the tracker's run of the same id and sends what that lacks. What a tracker cannot
take back stays: the steps that are done again differ only in what they have cost.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bkray.config import UserError
from bkray.reporting.files import write_atomically
from bkray.reporting.runlog import RunLog, strict

logger = logging.getLogger(__name__)

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the default of 7 holds training up for four minutes
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_X_DISABLE_META": "true",  # it holds the command line, and with it Ray's password
    "WANDB_FINISH_TIMEOUT": "60",  # by default the end of a run waits for the network for ever
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}
"""What holds where the user's environment says nothing else: no report to a vendor, no endless waiting."""

_MLFLOW_BATCH = 100  # parameters that one request may hold


class Tracker(Protocol):
    """Where the numbers of a run's log go as well. Every method may raise anything."""

    def log(self, step: int, /, **values: float) -> None: ...

    def truncate_after(self, step: int) -> int:
        """Drop what lies beyond `step`, if that can be done; returns the last step that is there then."""
        ...

    def close(self, failed: bool = False) -> None: ...


class TrackedLog(RunLog):
    """A run log with trackers. One that fails is left out from then on; the reason is a line of `notes`.

    Used as a context, it closes the trackers at the end, as failed where the block raises.
    """

    def __init__(self, path: Path, openers: Mapping[str, Callable[[], Tracker]], notes: Path) -> None:
        super().__init__(path)
        self.notes = notes
        self._trackers: dict[str, Tracker] = {}
        self._has: dict[str, int] = {}
        for kind, opener in openers.items():
            with self._guard(kind):
                self._trackers[kind] = opener()

    def log(self, step: int, **values: Any) -> None:
        super().log(step, **values)
        for kind in list(self._trackers):
            with self._guard(kind):
                self._send(kind, step, values)

    def truncate_after(self, step: int) -> dict[str, Any] | None:
        dropped = super().truncate_after(step)
        rows = self.read(self.path) if self.path.exists() else []
        for kind, tracker in list(self._trackers.items()):
            with self._guard(kind):
                self._has[kind] = tracker.truncate_after(step)
                for row in rows:
                    self._send(kind, row["step"], row)
        return dropped

    def close(self, failed: bool = False) -> None:
        for kind, tracker in list(self._trackers.items()):
            with self._guard(kind):
                tracker.close(failed)
        self._trackers.clear()

    def __enter__(self) -> TrackedLog:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.close(failed=error is not None)

    def _send(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Pass the finite numbers of a line on, unless the tracker has that step."""
        if step > self._has.get(kind, 0):
            self._trackers[kind].log(int(step), **_numbers(values))

    @contextmanager
    def _guard(self, kind: str) -> Iterator[None]:
        """Leave a tracker out that raises, whatever it raises, and say why."""
        try:
            yield
        except Exception as error:
            self._trackers.pop(kind, None)
            reason = " ".join(redacted(f"{type(error).__name__}: {error}").split())
            note = f"{kind} is left out from here on: {reason}; metrics.jsonl goes on"
            logger.warning(note)
            with self.notes.open("a", encoding="utf-8") as file:
                file.write(note + "\n")


def tracked_log(
    path: Path, kinds: Sequence[str], name: str, key: str, recipe: dict[str, Any], notes: Path
) -> TrackedLog:
    """The log at `path` and trackers of these kinds, whose files lie beside it.

    Another `key` is another run to the trackers; so is a folder that was deleted and made anew.
    """
    folder = path.parent
    run_id = _run_id(folder / "trackers.json", key) if kinds else ""
    openers = {kind: partial(open_tracker, kind, folder, run_id, name, recipe) for kind in kinds}
    return TrackedLog(path, openers, notes)


def check_trackers(kinds: Sequence[str]) -> None:
    """Raises UserError where a package that one of `kinds` needs is not installed; imports none of them."""
    for kind in kinds:
        if missing := [package for package in _packages(kind) if not _installed(package)]:
            raise UserError(
                f"training.trackers {kind} needs the package {missing[0]}, which is not installed: "
                f"pip install 'bkray[trackers]', or take {kind} out of training.trackers"
            )


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def open_tracker(kind: str, folder: Path, run_id: str, name: str, recipe: dict[str, Any]) -> Tracker:
    """The tracker's run of `run_id`, made where there is none; raises whatever its package does."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    recipe = _redacted_values(recipe)
    if kind == "tensorboard":
        return TensorBoard(folder / kind)
    if kind == "wandb":
        return WandB(folder, run_id, name, recipe)
    if kind == "mlflow":
        return MLflow(folder / kind, run_id, name, recipe)
    raise ValueError(f"{kind!r} is no tracker")


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The finite numbers among `values`, as the log holds them; `step` goes its own way."""
    return {
        name: float(value)
        for name, value in strict(values).items()
        if name != "step" and isinstance(value, int | float)
    }


def redacted(text: str) -> str:
    """`text` without what the URLs in it may hold of secrets: user and password, and the query."""
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    return re.sub(r"(://[^\s?]*)\?[^\s'\")]+", r"\1?***", text)


def _redacted_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted_values(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def _packages(kind: str) -> tuple[str, ...]:
    if kind == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        return ("mlflow", "sqlalchemy", "alembic")  # the last two for the store under the run's folder
    return {"tensorboard": ("tensorboardX",), "wandb": ("wandb",), "mlflow": ("mlflow",)}[kind]


def _run_id(path: Path, key: str) -> str:
    """The id that the trackers know this run by: drawn once for a folder and a key, then read from `path`."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        known = {}
    if known.get("key") != key:
        known = {"key": key, "id": uuid.uuid4().hex[:12]}
        write_atomically(path, json.dumps(known))
    return known["id"]


# --- the trackers ----------------------------------------------------------------------------------


class TensorBoard:
    """Event files in `folder`, one an attempt; each line is on the disk when `log` returns."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        before = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        self._steps = [step for path in before for step in _logged_steps(path.read_bytes())]
        attempt = len(before)
        self._writer = EventsWriter(str(folder / "events"), f".{attempt}")

    def log(self, step: int, /, **values: float) -> None:
        self._write(step, summary={"value": [{"tag": tag, "simple_value": v} for tag, v in values.items()]})

    def truncate_after(self, step: int) -> int:
        """Tells viewers to hide what came before of later steps (what SummaryWriter calls purge_step)."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))
        return max((logged for logged in self._steps if logged <= step), default=0)

    def close(self, failed: bool = False) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()


def _logged_steps(data: bytes) -> Iterator[int]:
    """The steps of an event file whose values are whole in it.

    It is of records (TFRecord): length, its checksum, the message, its checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        record = data[at + 12 : at + 12 + length]
        at += length + 16
        if at <= len(data) and (event := Event.FromString(record)).HasField("summary"):
            yield event.step


class WandB:
    """A run of Weights & Biases, with its files in `folder`/wandb; WANDB_MODE and the like hold.

    Offline, a process that is killed takes what is not yet written with it. So each attempt gets all lines,
    and the last one, when it ends, removes those before it that have not been synchronised.
    """

    def __init__(self, folder: Path, run_id: str, name: str, recipe: dict[str, Any]) -> None:
        import wandb

        self._before = list((folder / "wandb").glob(f"offline-run-*-{run_id}"))
        project = os.environ.get("WANDB_PROJECT", "bkray")
        self._run = wandb.init(
            project=project, dir=str(folder), id=run_id, name=name, config=recipe, resume="allow"
        )

    def log(self, step: int, /, **values: float) -> None:
        self._run.log(values, step=step)

    def truncate_after(self, step: int) -> int:
        return max(0, self._run.step - 1)

    def close(self, failed: bool = False) -> None:
        import wandb

        offline = self._run.offline
        self._run.finish(exit_code=int(failed))
        wandb.teardown()  # without it, 9 of 60 offline files were still empty here (wandb 0.31)
        for attempt in self._before if offline and not failed else ():
            if not list(attempt.glob("*.synced")):
                shutil.rmtree(attempt)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in an SQLite store in `folder`, found again by its tag."""

    def __init__(self, folder: Path, run_id: str, name: str, recipe: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
            artifacts = (folder.absolute() / "artifacts").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "bkray")
        found = self._client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found else self._client.create_experiment(wanted, artifacts)
        runs = self._client.search_runs([experiment], f"tags.`bkray.id` = '{run_id}'", max_results=1)
        self._id = runs[0].info.run_id if runs else self._new_run(experiment, run_id, name, recipe)
        self._client.update_run(self._id, status="RUNNING")

    def _new_run(self, experiment: str, run_id: str, name: str, recipe: dict[str, Any]) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(experiment, run_name=name, tags={"bkray.id": run_id})
        params = [Param(key, str(value)) for key, value in _flat(recipe)]
        for begin in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(
                run.info.run_id, params=params[begin : begin + _MLFLOW_BATCH], synchronous=True
            )
        return run.info.run_id

    def log(self, step: int, /, **values: float) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def truncate_after(self, step: int) -> int:
        names = self._client.get_run(self._id).data.metrics
        histories = (self._client.get_metric_history(self._id, name) for name in names)
        return max((metric.step for history in histories for metric in history), default=0)

    def close(self, failed: bool = False) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
