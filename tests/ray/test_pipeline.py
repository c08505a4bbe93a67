"""The stages in this process's cluster: other batches and blocks, a lost worker."""

import os
import shutil
import signal
import threading
import time

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bkray.config import load_recipe
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime import prepare, scoring
from bkray.runtime.exits import find_user_error
from bkray.runtime.pipeline import run_pipeline
from tests.kills import killing, processes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]


def run(recipe, out, until, artifacts=None):
    progress = Progress(Console(quiet=True))
    return run_pipeline(recipe, out, until=until, artifacts=artifacts, progress=progress)


def contents(run):
    """The bytes of every artifact, by path; manifests hold times and are left out."""
    files = [path for path in run.glob("artifacts/*/*") if path.name != "manifest.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a run up to its training set, made once: call with the recipe."""
    made = []

    def get(recipe):
        if not made:
            made.append(run(recipe, tmp_path_factory.mktemp("prepared"), "training_set").folder)
        return made[0]

    return get


def test_artifacts_are_the_same_bytes_for_other_batches_and_blocks(small, prepared, tmp_path, monkeypatch):
    recipe = load_recipe(small)
    usual = prepared(recipe)
    monkeypatch.setattr(scoring, "windows_a_block", lambda *_: 23)
    monkeypatch.setattr(prepare, "_BLOCKS_PER_CPU", 1)
    monkeypatch.setattr(prepare, "_BUCKETS", 3)
    monkeypatch.setattr(prepare, "_MOST_DOCUMENTS", 7)
    other = run(recipe, tmp_path / "other", "training_set").folder
    assert contents(usual) == contents(other)
    assert len(contents(usual)) >= 8
    table = pq.read_table(next(usual.glob("artifacts/training_set-*/part-00000.parquet")))
    assert table["weight"].equals(table["rarity"])


def test_a_killed_actor_is_replaced_and_the_scores_are_the_same(small, prepared, tmp_path, monkeypatch):
    recipe = load_recipe(small)
    usual = prepared(recipe)
    ignored = shutil.ignore_patterns("scored-*", "selected-*", "training_set-*")
    shutil.copytree(usual, tmp_path / "small", ignore=ignored)
    monkeypatch.setattr(scoring, "windows_a_block", lambda *_: 4)  # so that it takes long enough to be killed
    with killing(lambda killed: [] if killed else ["ray::MapWorker(MapBatches(_Score)).submit"]) as killed:
        other = run(recipe, tmp_path, "training_set").folder
    assert killed
    assert contents(usual) == contents(other)


PLAIN = ["difficulty=null", "selection=null", "proxy=null", "curriculum=null", "sampling=null"]
PLAIN += ["augmentation=[]"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of a recipe without techniques, made once for each number of workers: call with that recipe."""
    made = {}

    def get(recipe):
        workers, folder = recipe.training.workers, tmp_path_factory.mktemp("undisturbed")
        if workers not in made:
            data = data_of(next(iter(made.values())), folder) if made else None
            made[workers] = run(recipe, folder, "model", data)
        return made[workers]

    return get


def data_of(finished, folder):
    """A copy of the data artifacts of a run, for another that trains on the same."""
    source = finished.artifacts["training_set"].path.parent
    return shutil.copytree(source, folder / "artifacts", ignore=shutil.ignore_patterns("model-*"))


CACHED = ["training.schedule=loss_trend"]
CACHED += ["training.gradient_cache={kind: every, steps: 2, first_audits: 1, least_cosine: 1.0}"]
WAYS = [(2, []), (2, ["training.parallel=zero1"]), (1, CACHED)]
"""Workers, and more of the recipe: zero1 has the bits of ddp."""


def often(small, workers=2, more=()):
    """It logs every step, so that a lost one is missed."""
    steps = ["training.tokens=100_000", "training.log_every=1", "training.checkpoint_every=50"]
    steps += ["training.keep_checkpoints=9"]
    steps += ["training.profile={start: 3, steps: 1}"]
    return load_recipe(small, [*PLAIN, *steps, f"training.workers={workers}", *more])


@pytest.mark.parametrize(("workers", "more"), WAYS, ids=["ddp", "zero1", "alone, cached"])
def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(
    small, undisturbed, tmp_path, workers, more
):
    recipe = often(small, workers, more)
    expected = undisturbed(often(small, workers, CACHED if workers == 1 else ()))
    folder = tmp_path / "small"
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(folder,), daemon=True)
    killer.start()
    disturbed = run(recipe, tmp_path, "model", data_of(expected, tmp_path))
    killer.join()
    weights = [one.folder / "model" / "model.safetensors" for one in (expected, disturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    steps = [line["step"] for line in RunLog.read(disturbed.folder / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert "lost" in disturbed.artifacts["model"].manifest["ledger"]
    assert "lost" not in expected.artifacts["model"].manifest["ledger"]
    traces = sorted(path.name for path in (expected.folder / "profile").iterdir())
    assert len(traces) == workers, traces
    if workers == 1:
        assert "the gradient cache is off from step" in (folder / "notes.log").read_text()


def test_an_interrupted_run_goes_on_with_another_number_of_workers(small, undisturbed, tmp_path):
    """From step 50, as where the model was not there yet and neither were the later checkpoints."""
    expected = undisturbed(often(small, 2))
    folder = tmp_path / "small"
    data = data_of(expected, tmp_path)

    def later(_, names):
        made = ("step-", "model", "metrics", "tensorboard")
        return {name for name in names if name.startswith(made) and name != "step-00000050"}

    shutil.copytree(expected.folder, folder, ignore=later)
    again = run(often(small, 1), tmp_path, "model", data)
    assert min(line["step"] for line in RunLog.read(folder / "metrics.jsonl")) == 51
    weights = [load_file(one.folder / "model" / "model.safetensors") for one in (expected, again)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_that_diverges_says_so_once(small, undisturbed, tmp_path):
    """Ray would train anew for each of `max_failures`; the note tells how often steps were left out."""
    wild = ["training.lr=1e30", "training.on_divergence={kind: skip, most: 1}", "training.warmup=0"]
    wild += ["training.max_failures=1", "training.skip=null", "training.trackers=[]"]
    data = data_of(undisturbed(often(small)), tmp_path)
    with pytest.raises(Exception, match="diverged") as caught:
        run(load_recipe(small, [*PLAIN, *wild]), tmp_path, "model", data)
    error = find_user_error(caught.value)
    assert "as many came before as training.on_divergence.most allows, 1" in str(error)
    notes = (tmp_path / "small" / "notes.log").read_text()
    assert notes.count("the step was left out") == 1
    assert list((tmp_path / "small" / "checkpoints").glob("diverged-step-*-rank-*.pt"))


def kill_a_worker_after_a_checkpoint(folder):
    """SIGKILL to one of the processes that train, as soon as there are lines beyond a checkpoint."""
    while not past_a_checkpoint(folder):
        time.sleep(0.01)
    os.kill(max(processes("ray::RayTrainWorker", "ray::_train_task")), signal.SIGKILL)


def past_a_checkpoint(folder):
    saved = sorted((folder / "checkpoints").glob("step-*"))
    log = folder / "metrics.jsonl"
    return bool(saved) and log.exists() and RunLog.read(log)[-1]["step"] >= int(saved[-1].name[5:]) + 5
