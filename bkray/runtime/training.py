"""The training stage: Ray Train starts the workers (one alone is a task), each runs `bkray.training.train`.

Checkpoints, the log and the exported model are files under the run's folder, which every node must reach.
They, and not Ray's own state, decide where a run goes on; so the loop is the same with and without Ray.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from bkray.config import Recipe, UserError
from bkray.config.training import Training
from bkray.corpus import load_tokenizer
from bkray.corpus.mapped import JoinedWindows, map_windows
from bkray.corpus.windows import first_rows, read_columns, tokens_array
from bkray.curriculum import (
    CurriculumSampler,
    DifficultyAdjuster,
    GrowingSampler,
    ReplaySampler,
)
from bkray.model import LanguageModel, build_model
from bkray.model.backends import forget_announced
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Line
from bkray.reporting.trackers import TrackedLog, tracked_log
from bkray.runtime.beside import end_actors, run_beside
from bkray.runtime.distillation import map_soft_targets
from bkray.runtime.drawing import build_sampler, order_columns
from bkray.runtime.one_core import work_on_one_core
from bkray.runtime.plan import Plan
from bkray.runtime.precision import device_here
from bkray.runtime.work import Outcome, Work
from bkray.training import Checkpointer, Ledger, Reporter, WindowData, export_model, train
from bkray.training.batches import Windows
from bkray.training.state.start import load_overlapping, load_start

_OTHERS_END_S = 60.0  # how long a worker waits for another one of the same run
_HEALTH_CHECK_S = "1"  # Ray's 2 s are spent once more at the end; each check takes the workers 1 to 2 ms


@dataclass(frozen=True)
class Round:
    """The part of a run that ends at step `until`; windows have joined in rounds (see GrowingSampler)."""

    joined: tuple[np.ndarray, ...]
    """Positions in the training set, for each round so far."""
    starts: tuple[int, ...]
    until: int


@dataclass(frozen=True)
class Job:
    """What a training worker needs: the recipe, what to read, where to write."""

    recipe: Recipe
    key: str
    training_parts: list[Path]
    window_parts: list[Path]
    tokenizer: Path
    run: Path
    export: Path
    soft_target_parts: list[Path] = field(default_factory=list)
    """Where a teacher's predictions of the training windows are, in their order; empty without one."""
    start: Path | None = None
    """The exported model to start from."""
    pool_parts: tuple[Path, ...] = ()
    """The windows that `training.replay` draws its share from."""
    round: Round | None = None
    """Where windows join in rounds; None: all of them are there from the start."""

    @property
    def metrics(self) -> Path:
        return self.run / "metrics.jsonl"

    @property
    def notes(self) -> Path:
        """What there was to warn of: a damaged checkpoint, a tracker that was left out."""
        return self.run / "notes.log"

    @property
    def owner(self) -> Path:
        """The key of the run that the log is of."""
        return self.run / ".log_of"

    @property
    def owns_folder(self) -> bool:
        return self.owner.exists() and self.owner.read_text() == self.key

    @property
    def ray_state(self) -> Path:
        """What Ray Train keeps of one call; nothing goes on from it."""
        return self.run / ".ray_train"

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"


def job_of(work: Work) -> Job:
    return Job(
        recipe=work.recipe,
        key=work.stage.key,
        training_parts=work.inputs["training_set"].parts,
        window_parts=work.inputs["windows"].parts,
        soft_target_parts=work.inputs["soft_targets"].parts if "soft_targets" in work.inputs else [],
        tokenizer=work.inputs["tokenizer"].path / "tokenizer.json",
        run=work.stage.path.parent,
        export=work.directory / "exported",
        start=work.plan.start,
        pool_parts=pool_parts(work.plan),
    )


def pool_parts(plan: Plan) -> tuple[Path, ...]:
    """The pool's training windows, where the recipe replays some."""
    return tuple(plan.pool.training_set.parts) if plan.pool and plan.recipe.training.replay else ()


def model(work: Work) -> Outcome:
    """Train with `training.workers` workers and export the model into the stage's folder."""
    return train_job(work, job_of(work))


def train_job(work: Work, job: Job) -> Outcome:
    """Have `training.workers` workers do `job`, and collect what rank 0 exported.

    Several are Ray Train's. One alone is a task: it needs no process group, and starts without the five
    processes that Ray Train puts around its workers.
    """
    own_folder(job)
    shutil.rmtree(job.ray_state, ignore_errors=True)
    workers, gpus = job.recipe.training.workers, int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < workers:
        work.line.say(
            f"training.workers {workers}, each with a GPU of its own, but there are {gpus}: training runs on "
            f"CPUs; to use what is there set training.workers={gpus}"
        )
    show_while(_by_ray_train(job) if workers > 1 else _alone(job), job, work.line)
    shutil.rmtree(job.ray_state, ignore_errors=True)
    return collect(work, job)


_Call = tuple[Callable[[], Any], Callable[[], None]]  # what to call, and what ends the call


def _by_ray_train(job: Job) -> _Call:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _HEALTH_CHECK_S)
    gpus = ray.cluster_resources().get("GPU", 0) >= job.recipe.training.workers
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "gpus": gpus},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=job.recipe.training.workers, use_gpu=gpus),
        run_config=RunConfig(
            name="run",
            storage_path=str(job.ray_state.absolute()),
            failure_config=FailureConfig(max_failures=job.recipe.training.max_failures),
        ),
    )
    return trainer.fit, end_actors


def _alone(job: Job) -> _Call:
    training = job.recipe.training
    task = _train_task.options(num_gpus=gpu_share(training), max_retries=training.max_failures)
    done = task.remote(job)
    return lambda: ray.get(done), lambda: ray.cancel(done, force=True)


@ray.remote(num_cpus=1, max_calls=1)  # the process, and so its memory, ends with the call
def _train_task(job: Job) -> None:
    run_training(job, 0, device_here())


def gpu_share(training: Training) -> float:
    """What a run of one worker takes of a GPU; 0 where the cluster has none."""
    return training.gpu_share if ray.cluster_resources().get("GPU", 0) else 0.0


def collect(work: Work, job: Job) -> Outcome:
    """Move what rank 0 exported into the stage's folder and report it."""

    for file in job.export.iterdir():
        file.rename(work.directory / file.name)
    job.export.rmdir()
    result = json.loads((work.directory / "config.json").read_text())["training"]
    ledger = Ledger(result.pop("ledger"))
    summary = (
        f"{result['steps']:,} steps, {result['tokens']:,} tokens, loss {result['loss']:.3f} nats a token"
    )
    if counts := result.get("start_vocabulary"):
        summary += f"; {counts['shared']:,} tokens of the start model's vocabulary, {counts['new']:,} new"
    return Outcome(result["tokens"], summary, ledger=ledger, details=result)


def _worker(config: dict[str, Any]) -> None:
    """Train; what the user has to mend is not tried again where Ray replaces the workers for it."""
    job: Job = config["job"]
    if not config["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from workers that were given none
    to_mend = job.ray_state / "to_mend.txt"
    if to_mend.exists():
        raise UserError(to_mend.read_text(encoding="utf-8"))
    try:
        run_training(job, ray.train.get_context().get_world_rank(), ray.train.torch.get_device())
    except UserError as error:
        with suppress(OSError):  # where the disk is full, Ray tries `max_failures` times and tells it then
            write_atomically(to_mend, str(error))
        raise


def run_training(job: Job, rank: int, device: torch.device, reporter: Reporter | None = None) -> None:
    """What one training worker does, with or without Ray around it; rank 0 exports the model at the end.

    The log goes to `reporter`, by default the file `job.metrics` and the recipe's trackers.
    """
    work_on_one_core()
    if rank:
        return _train(job, rank, device, reporter)
    with _after_others(job.run / ".training.lock"), _noting(job.notes):
        _train(job, rank, device, reporter)


@contextmanager
def _noting(path: Path) -> Iterator[None]:
    """What is logged meanwhile goes to the file at `path`: to be shown while it runs, and in the report."""
    forget_announced()
    handler = logging.FileHandler(path, delay=True)
    loggers = [logging.getLogger("bkray.training"), logging.getLogger("bkray.model")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


@contextmanager
def _after_others(path: Path) -> Iterator[None]:
    """Wait for a worker that outlives its driver, which was killed, by some seconds: it logs and saves.

    Not for ever: some processes of Ray's lock themselves up in their own end.
    """
    with open(path, "w") as lock:
        until = time.monotonic() + _OTHERS_END_S
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.1)
        yield


def _train(job: Job, rank: int, device: torch.device, reporter: Reporter | None) -> None:
    recipe = job.recipe
    vocab_size = load_tokenizer(job.tokenizer).get_vocab_size()
    torch.manual_seed(recipe.seed)
    network = build_model(recipe.model, vocab_size)
    started = _start(network, job) if job.start else {}
    network = network.to(device)
    windows, sampler = _windows_and_sampler(job)
    validation = first_rows(job.window_parts, ["tokens"], "validation", recipe.training.eval_windows)
    reference, chosen = None, recipe.training.token_selection
    if chosen and chosen.needs_proxy:
        reference = map_windows(job.training_parts, "reference_loss")
    soft = map_soft_targets(job.soft_target_parts)
    data = WindowData(windows, tokens_array(validation), reference, soft)
    ledger = Ledger()
    with nullcontext(reporter) if reporter or rank else open_log(job) as log:
        result = train(
            network,
            data,
            sampler,
            recipe,
            reporter=log,
            ledger=ledger,
            checkpointer=Checkpointer(job.checkpoints, job.key, recipe.training.keep_checkpoints),
            adjuster=build_adjuster(recipe),
            traces=job.run / "profile",
            until=job.round.until if job.round else None,
        )
    if rank == 0:
        details = {**asdict(result), **started, "ledger": ledger.table()}
        export_model(job.export, network, recipe, job.tokenizer, vocab_size, {"training": details})


def own_folder(job: Job) -> None:
    """Make the run's folder its own: the log of another run there goes, whose steps are none of this one's.

    The folder of a version of bkray that did not note whose it is counts as this run's.
    """
    if job.owner.exists() and not job.owns_folder:
        job.metrics.unlink(missing_ok=True)
        job.notes.unlink(missing_ok=True)
    write_atomically(job.owner, job.key)


def _start(network: nn.Module, job: Job) -> dict[str, Any]:
    """Load the weights to start from; returns what there is to say of the vocabulary."""
    assert job.start
    given = job.start, job.recipe.model, job.tokenizer
    if job.recipe.training.start_vocabulary == "same":
        load_start(network, *given)
        return {}
    assert isinstance(network, LanguageModel)  # the recipe refuses others
    return {"start_vocabulary": load_overlapping(network, *given)}


def _windows_and_sampler(job: Job) -> tuple[Windows, CurriculumSampler]:
    """The training windows and what draws from them; where some are replayed, the pool's follow."""
    windows, replay = map_windows(job.training_parts), job.recipe.training.replay
    sampler = _sampler(job, len(windows))
    if not replay:
        return windows, sampler
    pool = map_windows(job.pool_parts)
    joined = JoinedWindows(windows, pool)
    return joined, ReplaySampler(sampler, len(windows), len(pool), replay.share)


def _sampler(job: Job, windows: int) -> CurriculumSampler:
    recipe = job.recipe
    if job.round:
        grown = job.round.joined, job.round.starts, windows, recipe.batch_windows, recipe.steps
        return GrowingSampler(*grown, seed=recipe.seed)
    columns = order_columns(recipe)
    table = read_columns(job.training_parts, columns) if columns else {}
    return build_sampler(recipe, windows, {name: table[name].to_numpy() for name in columns})


def open_log(job: Job) -> TrackedLog:
    recipe = job.recipe
    values = recipe.model_dump(mode="json")
    return tracked_log(job.metrics, recipe.training.trackers, recipe.name, job.key, values, job.notes)


def build_adjuster(recipe: Recipe) -> DifficultyAdjuster | None:
    adjuster = recipe.curriculum.adjuster if recipe.curriculum else None
    return DifficultyAdjuster(**adjuster.model_dump()) if adjuster else None


def show_while(call: _Call, job: Job, line: Line) -> None:
    """Call and meanwhile show the newest line of the job's log, and what there is to warn of."""
    shown = _show_notes(job.notes, None, 0)

    def show() -> None:
        nonlocal shown
        shown = _show_notes(job.notes, line, shown)
        last = _last_line(job.metrics)
        line.update(_progress(last, job.recipe.steps) if last else "starting workers")

    run, end = call
    run_beside(run, show, end)
    _show_notes(job.notes, line, shown)


def _show_notes(path: Path, line: Line | None, shown: int) -> int:
    """Say what was noted after the first `shown` bytes; returns how many bytes there are."""
    text = path.read_bytes()[shown:] if path.exists() else b""
    if line and text:
        line.say(text.decode().rstrip())
    return shown + len(text)


def _progress(last: dict[str, Any], steps: int) -> str:
    """Step, loss, and the time that is left at the pace of the steps so far."""
    step, loss = last["step"], last["loss"] or math.nan
    left = last["seconds"] / step * (steps - step)
    return f"step {step:,} of {steps:,}, loss {loss:.3f}, about {left:.0f} s left"


def _last_line(path: Path) -> dict[str, Any] | None:
    """The newest whole line of the log, read from its end."""

    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None
