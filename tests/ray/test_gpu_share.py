"""Runs of one worker take their share of a GPU: here of one that Ray is told of, and nothing computes on."""

import json
import logging
import threading

import pytest
import ray
import torch.multiprocessing as mp
import yaml
from rich.console import Console

from bkray.config import load_recipe
from bkray.reporting.progress import Progress
from bkray.runtime.comparison import run_comparison
from bkray.runtime.pipeline import run_pipeline
from bkray.runtime.sweep import run_sweep
from tests.forks import fork_server

pytestmark = pytest.mark.ray

RATES = {"training.lr": {"kind": "choice", "values": [1e-2, 2e-2]}}
SWEEP = {"name": "rates", "recipe": "base.yaml", "space": RATES, "trials": 2}
ARMS = {f"layers-{n}": {"model": {"kind": "resnet_bk", "d_model": 32, "n_layers": n}} for n in (1, 2)}
COMPARISON = {"recipe": "base.yaml", "arms": ARMS, "reference": "layers-1", "learning_rates": [0.01]}
COMPARISON |= {"name": "arms", "steps": [80], "seeds": [0], "timing_rounds": 3, "equal_seconds": False}


class Watch(threading.Thread):
    """Notes how much of the GPU is free meanwhile."""

    def __init__(self):
        super().__init__(daemon=True)
        self.free, self.ended = set(), threading.Event()

    def run(self):
        while not self.ended.wait(0.05):
            self.free.add(round(ray.available_resources().get("GPU", 0.0), 2))


def free_during(call, *arguments, **keywords):
    watch = Watch()
    watch.start()
    call(*arguments, **keywords)
    watch.ended.set()
    watch.join()
    return sorted(watch.free)


def work(rank, folder):
    options = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    ray.init(address="local", num_cpus=2, num_gpus=1, **options)
    out = folder / "out"
    trials = free_during(run_sweep, folder / "rates.yaml", ("training.gpu_share=0.4",), out=out)
    arms = free_during(run_comparison, folder / "arms.yaml", ("training.gpu_share=0.3",), out=out)
    two = load_recipe(folder / "base.yaml", ["training.workers=2", "training.tokens=3840"])
    with open(folder / "said.txt", "w") as said:
        run_pipeline(two, out, progress=Progress(Console(file=said, width=1000)))
    ray.shutdown()
    (folder / "free.json").write_text(json.dumps([trials, arms]))


def test_trials_and_arms_share_a_gpu_and_more_workers_than_gpus_say_so(texts, tmp_path):
    base = {
        "name": "base",
        "corpus": {"kind": "jsonl", "path": str(texts), "validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "window": 48,
        "model": {"kind": "resnet_bk", "d_model": 32},
        "training": {"tokens": 384 * 80, "batch_tokens": 384, "workers": 1},
        "samples": None,
    }
    for name, values in (("base", base), ("rates", SWEEP), ("arms", COMPARISON)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    mp.start_processes(work, (tmp_path,), 1, start_method=fork_server())
    trials, arms = json.loads((tmp_path / "free.json").read_text())
    assert trials[0] == 0.2
    assert arms[0] == 0.0  # steps are timed with the whole GPU
    assert 0.4 in arms
    assert "device_memory_bytes" not in (tmp_path / "out" / "base" / "metrics.jsonl").read_text()
    assert (
        "training.workers 2, each with a GPU of its own, but there are 1"
        in (tmp_path / "said.txt").read_text()
    )
