"""The Ray cluster a run works on, and the budget that is checked before anything starts.

Inside a submitted job (RAY_ADDRESS is set) a run joins that cluster; anywhere else it starts one of its own
on this machine and takes it down again.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray._private.utils import estimate_available_memory
from ray.data.context import DataContext, ShuffleStrategy

from bkray.config import Recipe, UserError
from bkray.config.gradient_cache import EveryKSteps
from bkray.config.model import ImportModel
from bkray.runtime.forkserver import START_WORKER
from bkray.runtime.watch import watching

TASK_CPUS = 0.5
"""CPUs a data task or scoring actor asks for: an actor a core leaves room for the tasks that feed it."""

_LEAST_CPUS = 2
"""Logical CPUs of a local cluster: Ray Data's own tasks ask for a whole one, beside an actor's half."""

_LOCAL_RAY = {
    "RAY_worker_niceness": "0",  # Ray's 15 lets workers yield to everything else on the machine
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one machine of one's own is not taken away
    "RAY_prestart_worker_first_driver": "0",  # such workers are of no job and so not forked
    "RAY_event_stats": "false",  # every process of Ray's would keep and report figures that nobody reads
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
}

_LOCAL_NODE = {
    "include_log_monitor": False,  # the output of workers is not followed
    "no_monitor": True,  # one machine is not scaled
    **({"setup_worker_path": str(START_WORKER)} if sys.platform == "linux" else {}),
}
"""Parameters of Ray's own node (`RayParams`) that `ray.init` does not hand on."""

_STALLED_S = 300  # a data stage that makes no step for so long is given up
_OBJECT_STORE_BYTES = 1 << 30
_WORKER_BYTES = 1 << 30  # resident memory to expect of a training worker beside its model's states


def inside_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return bool(os.environ.get("RAY_ADDRESS"))


def local_cpus(asked: int | None = None) -> int:
    """The CPUs of a local run: `asked`, or those that this process may use."""
    return asked or len(os.sched_getaffinity(0))


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[int]:
    """Join or start a cluster, yield its CPUs, and leave it; one that is already joined is used and kept."""
    owned, terminate = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if owned and inside_job():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    elif owned:
        _start(cpus)
    interruptible = threading.current_thread() is threading.main_thread()
    if owned and interruptible:
        signal.signal(signal.SIGTERM, terminate)  # Ray's own aborts the process
    _configure_data()
    try:
        alone = owned and not inside_job()
        with watching() if alone and interruptible else nullcontext():
            yield local_cpus(cpus) if alone else int(ray.cluster_resources().get("CPU", 0))
    finally:
        if owned:
            ray.shutdown()


def _start(cpus: int | None) -> None:
    """Start a Ray of one's own on this machine; raises UserError where the machine is too busy for it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # workers inherit it
    for name, value in _LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    try:
        with _own_node():
            ray.init(
                address="local",
                num_cpus=max(_LEAST_CPUS, local_cpus(cpus)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
    except Exception as error:  # Ray raises no narrower one
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start within the 30 s that it waits: this machine is too busy: close other "
            "programs and run the same command again"
        ) from error


@contextmanager
def _own_node() -> Iterator[None]:
    """Let the node that is started in this context have `_LOCAL_NODE`, and no server of a dashboard.

    Without a dashboard Ray starts its server all the same, for usage reports, and waits for it.
    """
    parameter: Any = import_module("ray._private.parameter")  # Any: what they define is exchanged
    node: Any = import_module("ray._private.node").Node
    before = parameter.RayParams, node.start_api_server
    parameter.RayParams = partial(parameter.RayParams, **_LOCAL_NODE)
    node.start_api_server = lambda self, **_: None
    try:
        yield
    finally:
        parameter.RayParams, node.start_api_server = before


def _configure_data() -> None:
    context = DataContext.get_current()
    context.use_datasource_v2 = False  # its reads of Parquet files start 32 processes each for the footers
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else a UserError that a function raises is lost on its way
    context.execution_no_progress_timeout_s = _STALLED_S
    # On a small cluster the default shuffle starts 200 partitions: 10 s for 25,000 rows; this one took 2.
    context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def check_budget(recipe: Recipe, cpus: int, out: Path, corpus_bytes: int) -> None:
    """Refuse a run that cannot fit, with the arithmetic.

    Raises UserError for too few CPUs for the workers, too little free disk under `out`, or too little memory.
    """
    workers = recipe.training.workers
    if workers > cpus:
        raise UserError(
            f"training.workers {workers} x 1 CPU = {workers} CPUs, but there are {cpus}: "
            f"set training.workers={cpus}"
            + ("" if inside_job() else f", or --cpus {workers} to share the cores that there are")
        )
    folder = next(p for p in (out, *out.absolute().parents) if p.exists())
    free, needed = shutil.disk_usage(folder).free, disk_bytes(recipe, corpus_bytes)
    if needed > free:
        raise UserError(
            f"{out}: {_mib(corpus_bytes)} of corpus need about {_mib(needed)} of disk for artifacts and "
            f"checkpoints, but {_mib(free)} are free: choose another --out"
        )
    if inside_job():
        return  # the workers' memory is that of other machines
    states, kept = _least_state_bytes(recipe), _cache_bytes(recipe)
    worker = _WORKER_BYTES + states + sum(kept.values())
    available, needed = available_memory(), _OBJECT_STORE_BYTES + workers * worker
    if needed > available:
        cached = "".join(f", {name} cache {_mib(size)}" for name, size in kept.items())
        lower = "".join(f" or training.{name}_cache.max_bytes" for name in kept)
        raise UserError(
            f"{workers} workers x {_mib(worker)} (model and optimizer at least {_mib(states)}{cached}) + "
            f"object store {_mib(_OBJECT_STORE_BYTES)} = "
            f"{_mib(needed)} of memory, but {_mib(available)} are available: "
            f"set training.workers{lower} lower, take a smaller model or close other programs"
        )


def check_budget_here(recipe: Recipe, cpus: int | None, out: Path, corpus_bytes: int) -> None:
    """`check_budget` before a Ray of one's own is started; a job's cluster is known when it is joined."""
    if not inside_job():
        check_budget(recipe, local_cpus(cpus), out, corpus_bytes)


def disk_bytes(recipe: Recipe, corpus_bytes: int) -> int:
    """An estimate of what a run writes: text and tokens (4 bytes each) once a stage and once for the training
    windows as they are read; checkpoints, with two moments of each weight, averages and cached gradients."""
    copies, cleaning = 1 + sum(section.share for section in recipe.augmentation), recipe.cleaning
    stages = 3 + sum(map(bool, (cleaning.near, cleaning.quality, cleaning.nearest, cleaning.leakage)))
    stages += bool(recipe.difficulty or recipe.selection) + bool(recipe.selection)
    if distillation := recipe.training.distillation:  # 6 bytes for each of k, twice, where a token has 4
        stages += 3 * distillation.top_k
    weights = 3 + bool(recipe.training.average)
    checkpoint = weights * 4 * _least_parameters(recipe) + _gradient_cache_bytes(recipe)
    checkpoint = max(64 << 20, checkpoint)
    return int(corpus_bytes * copies * (1.5 + stages)) + checkpoint * (recipe.training.keep_checkpoints + 3)


def _least_state_bytes(recipe: Recipe) -> int:
    """What a worker's weights, gradients and moments take at least, and what else there is one of for each
    weight, 4 bytes each. Not counted: what lies on GPUs, and as in `_least_parameters`.
    """
    training = recipe.training
    if _on_gpus(training.workers):
        return 0
    share = 1 / training.workers  # of what the workers do not all hold
    copies = {"ddp": 3, "zero1": 2 + share, "fsdp2": 3 * share}[training.parallel]
    copies += bool(training.average) + isinstance(training.gradient_cache, EveryKSteps)
    return int(4 * copies * _least_parameters(recipe))


def _on_gpus(workers: int) -> bool:
    import torch  # late: the workers of data stages do without

    return bool(torch.cuda.device_count() >= workers)


def _cache_bytes(recipe: Recipe) -> dict[str, int]:
    """What a worker's caches may come to hold in the host's memory, those that do."""
    gradients = 0 if _on_gpus(recipe.training.workers) else _gradient_cache_bytes(recipe)
    sizes = {"activation": _activation_cache_bytes(recipe), "gradient": gradients}
    return {name: size for name, size in sizes.items() if size}


def _activation_cache_bytes(recipe: Recipe) -> int:
    """At most the windows that a worker draws."""
    training, model = recipe.training, recipe.model
    cache = training.activation_cache
    if not cache or cache.where == "disk" or isinstance(model, ImportModel):
        return 0
    drawn = recipe.steps * training.batch_tokens // training.workers
    return min(cache.max_bytes, cache.bytes_of(drawn, model.d_model))


def _gradient_cache_bytes(recipe: Recipe) -> int:
    """The gradients that are young enough, of the weights that `_least_parameters` counts."""
    cache = recipe.training.gradient_cache
    if not cache or isinstance(cache, EveryKSteps):
        return 0
    young = min(cache.max_age + 1, recipe.steps)
    return min(cache.max_bytes, young * 4 * _least_parameters(recipe))


def _least_parameters(recipe: Recipe) -> int:
    """Those of the feed-forward layers, most of a large model; 0 of kind import, experts and halting."""
    model = recipe.model
    if isinstance(model, ImportModel) or any(getattr(model, key, None) for key in ("experts", "halting")):
        return 0
    width = getattr(model, "feed_forward_width", None) or 3 * model.d_model
    return model.n_layers * 2 * model.d_model * width


def available_memory() -> int:
    """Bytes that are free or can be freed, on the machine and within the limit of a container."""
    return min(_machine_memory(), estimate_available_memory())


def _machine_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/meminfo has no MemAvailable")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
