import logging
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bkray.config import parse_recipe
from bkray.curriculum import WeightedSampler
from bkray.model import ResNetBK, ResNetBKConfig
from bkray.runtime.drawing import build_sampler, order_columns
from bkray.runtime.training import (
    Job,
    _after_others,
    _noting,
    _progress,
    _windows_and_sampler,
    own_folder,
    run_training,
)


def test_the_time_left_follows_the_pace_of_the_steps():
    text = _progress({"step": 10, "loss": 1.25, "seconds": 5.0}, 1010)
    assert text == "step 10 of 1,010, loss 1.250, about 500 s left"
    assert "loss nan" in _progress({"step": 10, "loss": None, "seconds": 5.0}, 20)


def test_the_log_of_another_run_in_the_folder_goes_and_its_own_stays(tmp_path):
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}})
    for key, left in (("a", True), ("a", True), ("b", False)):
        job = Job(recipe, key, [], [], Path(), tmp_path, tmp_path / "model")
        job.metrics.write_text('{"step": 10}\n')
        own_folder(job)
        assert job.metrics.exists() == left


def test_what_is_replayed_is_of_the_pool(tmp_path):
    """Windows of the run have tokens below 50, those of the pool above."""
    values = {"name": "t", "corpus": {"kind": "docstrings"}, "window": 8, "model": {"kind": "resnet_bk"}}
    training = {"tokens": 320, "batch_tokens": 32, "start_from": "m", "replay": {"share": 0.25, "run": "r"}}
    recipe = parse_recipe({**values, "training": training})
    parts = []
    for name, low in (("own", 0), ("pool", 50)):
        (tmp_path / name).mkdir()
        tokens = pa.array(np.random.default_rng(0).integers(low, low + 50, 12 * 9).astype(np.int32))
        parts.append(tmp_path / name / "part-00000.parquet")
        pq.write_table(pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, 9)}), parts[-1])
    job = Job(recipe, "key", parts[:1], [], Path(), tmp_path, tmp_path / "model", pool_parts=(parts[1],))
    windows, sampler = _windows_and_sampler(job)
    drawn = np.concatenate([windows[sampler.ids(step)] for step in range(recipe.steps)])
    assert len(drawn) == 40
    assert (drawn >= 50).all(axis=1).sum() == (drawn >= 50).any(axis=1).sum() == 10


def test_a_worker_waits_for_the_one_of_a_killed_driver(tmp_path, monkeypatch):
    trained = threading.Event()
    monkeypatch.setattr("bkray.runtime.training._train", lambda *_: trained.set())
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}})
    job = Job(recipe, "key", [], [], Path(), tmp_path, tmp_path / "model")
    with _after_others(tmp_path / ".training.lock"):
        waiting = threading.Thread(target=run_training, args=(job, 0, torch.device("cpu")))
        waiting.start()
        assert not trained.wait(0.3)
    waiting.join(timeout=60)
    assert trained.is_set()


def test_a_worker_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("bkray.runtime.training._OTHERS_END_S", 0.2)
    with _after_others(tmp_path / ".training.lock"), _after_others(tmp_path / ".training.lock"):
        pass


def test_each_run_of_a_process_notes_in_its_own_folder(tmp_path, monkeypatch):
    log = logging.getLogger("bkray.model")
    monkeypatch.setattr("bkray.runtime.training._train", lambda job, *_: log.info("in %s", job.run.name))
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}})
    jobs = [Job(recipe, "key", [], [], Path(), tmp_path / name, tmp_path / "model") for name in "ab"]
    for job in jobs:
        job.run.mkdir()
        run_training(job, 0, torch.device("cpu"))
        run_training(job, 1, torch.device("cpu"))  # the other ranks have nothing to add
    assert [job.notes.read_text() for job in jobs] == ["in a\n", "in b\n"]


def test_each_run_of_a_process_notes_the_backend(tmp_path):
    model = ResNetBK(ResNetBKConfig(vocab_size=8, d_model=32, n_layers=1))
    for name in "ab":
        with _noting(tmp_path / name):
            model(torch.zeros(1, 4, dtype=torch.int64))
        assert (tmp_path / name).read_text() == "backend auto on cpu torch.float32: numba\n"


def test_the_sampler_follows_the_recipes_curriculum_and_weights():
    base = {"name": "t", "corpus": {"kind": "docstrings"}}
    difficulty, weight = np.arange(100.0)[::-1], np.r_[np.full(50, 1e-9), np.full(50, 1.0)]
    plain = build_sampler(parse_recipe(base), 100, {})
    assert order_columns(parse_recipe(base)) == []
    assert plain.available(0) == 100
    recipe = parse_recipe(
        {**base, "curriculum": {"start": 0.5}, "sampling": {"weight": "rarity", "share": 0.32}}
    )
    assert order_columns(recipe) == ["difficulty", "weight"]
    sampler = build_sampler(recipe, 100, {"difficulty": difficulty, "weight": weight})
    assert isinstance(sampler, WeightedSampler)
    assert sampler.available(0) == 50
    assert sampler.ids(0).min() >= 50  # the easiest half; 16 windows are a pass
    sampler = build_sampler(
        recipe.model_copy(update={"curriculum": None, "difficulty": None}), 100, {"weight": weight}
    )
    assert sampler.ids(0).min() >= 50  # of all, those that have weight
