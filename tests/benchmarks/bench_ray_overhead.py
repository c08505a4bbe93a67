"""What Ray Train and our loop add: python tests/benchmarks/bench_ray_overhead.py [ROUNDS] [key=value …]

The training stage of the quickstart, in a running cluster, against a bare torch loop over the same batches
in as many processes: forward, backward, clip, optimizer, and the same looks at the validation split. Both
start their processes and read the data; the stage also logs, writes checkpoints and exports the model. The
arms take turns, in the other order every second round, so that a machine that slows down favours neither;
printed are every round and the ratio of the sums. About four minutes a round on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bkray.config import load_recipe
from bkray.corpus import load_tokenizer
from bkray.corpus.windows import read_columns, tokens_array
from bkray.model import build_model
from bkray.reporting.progress import Progress
from bkray.runtime.cluster import cluster
from bkray.runtime.drawing import build_sampler
from bkray.runtime.pipeline import plan_run, run_pipeline
from bkray.runtime.plan import Plan
from bkray.runtime.training import Job, job_of, model
from bkray.runtime.work import Work
from bkray.training import build_optimizer, build_schedule

EVAL_BATCH = 16
QUIET = Progress(Console(quiet=True))
RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "quickstart.yaml"


def bare_loop(rank: int, job: Job, rendezvous: str) -> None:
    """One process of the loop that people write without a framework."""
    torch.set_num_threads(1)
    recipe = job.recipe
    size = recipe.training.workers
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    table = read_columns(job.training_parts, ["tokens", "difficulty"])
    windows = tokens_array(table)
    sampler = build_sampler(recipe, len(windows), {"difficulty": table["difficulty"].to_numpy()})
    held_out = tokens_array(read_columns(job.window_parts, ["tokens"], "validation"))
    validation = held_out[: recipe.training.eval_windows]
    torch.manual_seed(recipe.seed)
    network = build_model(recipe.model, load_tokenizer(job.tokenizer).get_vocab_size())
    parallel = DistributedDataParallel(network, gradient_as_bucket_view=True)
    optimizer = build_optimizer(network, recipe.training)
    schedule = build_schedule(optimizer, recipe.training, recipe.steps)
    for step in range(recipe.steps):
        tokens = torch.as_tensor(windows[sampler.ids(step, rank, size)], dtype=torch.int64)
        logits_BNV = parallel(tokens[:, :-1])
        F.cross_entropy(logits_BNV.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.training.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % recipe.training.eval_every == 0 or step + 1 == recipe.steps:
            held_out_loss(network, validation[rank::size])
    dist.destroy_process_group()


@torch.no_grad()
def held_out_loss(network: torch.nn.Module, windows: np.ndarray) -> float:
    nats = torch.zeros(1)
    for begin in range(0, len(windows), EVAL_BATCH):
        tokens = torch.as_tensor(windows[begin : begin + EVAL_BATCH], dtype=torch.int64)
        logits_BNV = network(tokens[:, :-1])
        nats += F.cross_entropy(logits_BNV.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    dist.all_reduce(nats)
    return float(nats)


def plain_torch(work: Work, folder: Path) -> None:
    rendezvous = str(folder / "rendezvous")
    mp.spawn(bare_loop, (job_of(work), rendezvous), nprocs=work.recipe.training.workers)


def training_stage(work: Work, folder: Path) -> None:
    model(work)


def fresh_work(plan: Plan, folder: Path, cpus: int) -> Work:
    """The model stage of `plan` with its finished inputs, to be done anew in `folder`."""
    stage = plan.stages["model"]
    found = {name: source.find() for name, source in stage.inputs.items()}
    inputs = {name: artifact for name, artifact in found.items() if artifact}
    directory = folder / "filling"
    directory.mkdir()
    with QUIET.stage("model") as line:
        return Work(replace(stage, path=folder / "model"), plan, directory, inputs, cpus, line)


def seconds(arm, plan: Plan, cpus: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        work = fresh_work(plan, Path(folder), cpus)
        start = time.perf_counter()
        arm(work, Path(folder))
        return time.perf_counter() - start


def main(rounds: int, overrides: list[str]) -> None:
    recipe = load_recipe(RECIPE, overrides)
    arms = {"bare loop": plain_torch, "training stage": training_stage}
    times: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as out, cluster(recipe.training.workers) as cpus:
        run_pipeline(recipe, Path(out), until="training_set", progress=QUIET)
        plan = plan_run(recipe, Path(out))
        for turn in range(rounds):
            for name in list(arms)[:: -1 if turn % 2 else 1]:
                times[name].append(seconds(arms[name], plan, cpus))
                print(f"  {name:16} {times[name][-1]:8.2f} s", flush=True)
    bare, stage = (sum(values) for values in times.values())
    print(f"{recipe.steps} steps, {recipe.training.workers} processes: x {stage / bare:.3f}")


if __name__ == "__main__":
    given = sys.argv[1:]
    count = int(given.pop(0)) if given and given[0].isdigit() else 3
    main(count, given)
