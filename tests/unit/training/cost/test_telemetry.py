"""Time by phase, memory, utilisation, traces: what the log and the run's folder get of them."""

import json
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, WindowData, train
from bkray.training.cost import telemetry
from bkray.training.cost.flops import forward_flops
from bkray.training.cost.telemetry import PhaseClock, peak_flops

CPU = torch.device("cpu")
WINDOW, STEPS = 16, 12


def recipe(**training):
    settings = {"tokens": STEPS * 4 * WINDOW, "batch_tokens": 4 * WINDOW, "workers": 1, "optimizer": "adamw"}
    often = {"log_every": 2, "eval_every": 4, "checkpoint_every": 6}
    model = {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 2}
    corpus = {"kind": "docstrings"}
    chosen = {**settings, **often, **training}
    return parse_recipe({"name": "t", "corpus": corpus, "window": WINDOW, "model": model, "training": chosen})


def run(settings, **parts):
    torch.manual_seed(0)
    model = build_model(settings.model, 20)
    windows = np.random.default_rng(0).integers(0, 20, (60, WINDOW + 1)).astype(np.int32)
    sampler = CurriculumSampler(np.zeros(60), 4, settings.steps, start=1.0)
    train(model, WindowData(windows, windows[:8]), sampler, settings, **parts)
    return model


def test_shares_of_phases_and_of_what_is_left(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 3.0, 4.0, 5.0, 6.0, 10.0, 10.0])
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    clock = PhaseClock(CPU)
    with clock.phase("reading"):  # from 1 to 3
        pass
    with clock.device_phase("forward"):  # from 3 to 4
        pass
    with pytest.raises(KeyError), clock.phase("reading"):  # from 5 to 6
        raise KeyError
    assert clock.shares() == {"reading": 0.3, "forward": 0.1, "other": pytest.approx(0.6)}


def test_every_line_says_where_the_time_went(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl")
    settings = recipe()
    model = run(settings, reporter=log, checkpointer=Checkpointer(tmp_path / "checkpoints", "key"))
    lines = RunLog.read(log.path)
    phases = [{key: value for key, value in line.items() if key.startswith("time_")} for line in lines]
    always = {"time_reading", "time_forward", "time_backward", "time_optimizer", "time_other"}
    for line, times in zip(lines, phases, strict=True):
        assert always <= times.keys()
        assert sum(times.values()) == pytest.approx(1.0)
        assert min(times[name] for name in always - {"time_other"}) > 0
        assert ("time_validation" in times) == ("validation_loss" in line)
    assert [line["step"] for line in lines if "time_checkpoint" in line] == [8]  # saved after line 6
    peak = peak_flops(CPU, "fp32", torch.get_num_threads())
    flops = 3 * forward_flops(model, WINDOW, training_mode=True) * 4 * 2
    for before, line in pairwise(lines):
        seconds = line["seconds"] - before["seconds"]
        assert line["mfu"] * peak * seconds == pytest.approx(flops)
        assert line["tokens_per_second"] * seconds == pytest.approx(line["tokens"] - before["tokens"])
        assert line["memory_bytes"] > 2**20


def test_the_peak_is_of_this_precision_and_leaves_the_random_state_alone(monkeypatch):
    multiplied, product = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: (multiplied.append(a.dtype), product(a, b))[1])
    before = torch.get_rng_state()
    peaks = [peak_flops.__wrapped__(CPU, precision, 1) for precision in ("fp32", "bf16")]
    assert torch.equal(torch.get_rng_state(), before)
    assert min(peaks) > 1e6
    assert set(multiplied[:6]) == {torch.float32}
    assert set(multiplied[6:]) == {torch.bfloat16}


MEMORY = """
import torch
from bkray.training.cost.telemetry import memory
before = memory(torch.device("cpu"))
held = torch.ones(16 << 20)
print(list(before), memory(torch.device("cpu"))["memory_bytes"] - before["memory_bytes"])
"""


def test_memory_is_what_the_process_holds():
    """In a process of its own: what other tests held may be given back at any moment."""
    finished = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    keys, grown = finished.stdout.rsplit(" ", 1)
    assert keys == "['memory_bytes']"
    assert 0.9 * 4 * (16 << 20) < int(grown) < 2 * 4 * (16 << 20)


def test_a_trace_of_the_chosen_steps_is_written_and_changes_nothing(tmp_path):
    plain = run(recipe())
    traced = run(recipe(profile={"start": 3, "steps": 2}), traces=tmp_path / "profile")
    for one, other in zip(plain.parameters(), traced.parameters(), strict=True):
        assert torch.equal(one, other)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "rank-0.json"
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert names.count("Optimizer.step#AdamW.step") == 2
    assert "aten::mm" in names


def test_a_trace_that_could_not_be_is_refused():
    with pytest.raises(UserError, match=r"training.profile start 10 and steps 5 go beyond the 12 steps"):
        recipe(profile={})
    with pytest.raises(ValueError, match="needs a folder"):
        run(recipe(profile={"start": 0}))
