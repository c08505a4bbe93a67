"""The savings that need the pipeline: reference losses as a column, and a run that starts from another."""

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from bkray.config import load_recipe
from bkray.corpus.windows import read_columns, reference_array, tokens_array
from bkray.difficulty import score_windows
from bkray.evaluation import window_nats
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime.pipeline import plan_run, run_pipeline
from bkray.runtime.results import _pool
from bkray.training import load_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

PLAIN = ["difficulty=null", "selection=null", "curriculum=null", "augmentation=[]", "training.trackers=[]"]


def run(recipe, out, until="model"):
    return run_pipeline(recipe, out, until=until, progress=Progress(Console(quiet=True)))


def test_a_run_starts_from_another_and_selects_tokens_by_the_proxy(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["model={kind: resnet_bk, d_model: 32, n_layers: 2}"]
    first = load_recipe(small, [*PLAIN, *model, "proxy=null", "training.tokens=8000"])
    pool = run(first, tmp_path / "first")
    started = pool.artifacts["model"].path
    second = [
        "name=second",
        "tokenizer={}",
        f"training.start_from={started.relative_to(tmp_path)}",
        "training.freeze=1",
        "training.activation_cache={where: disk}",
        "training.length={start: 24, until: 0.1}",
        "training.token_selection={keep: 0.5}",
        "training.tokens=40_000",
    ]
    done = run(load_recipe(small, [*PLAIN, *model, *second]), tmp_path / "second")
    training_set = read_columns(done.artifacts["training_set"].parts, ["tokens", "reference_loss"])
    expected = score_windows(load_model(done.artifacts["proxy"].path), tokens_array(training_set), (), True)
    np.testing.assert_array_equal(reference_array(training_set), expected["token_loss"].astype(np.float16))
    before, after = (
        load_file(path / "model.safetensors") for path in (started, done.artifacts["model"].path)
    )
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if name.startswith("blocks.1.")}
    tokenizers = [path / "tokenizer.json" for path in (started, done.artifacts["tokenizer"].path)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
    assert done.artifacts["scored"].manifest["ledger"]["scoring"]["flops"] > 0
    lines = RunLog.read(done.folder / "metrics.jsonl")
    assert (lines[0]["length"], lines[-1]["length"]) == (24, 48)
    assert max(line["activations_reused"] for line in lines) > 0
    third = [
        "name=third",
        "tokenizer={}",
        "proxy=null",
        "sampling=null",
        "training.skip=null",
        "training.workers=1",
        f"training.start_from={started.relative_to(tmp_path)}",
        f"training.replay={{run: {pool.folder.relative_to(tmp_path)}, share: 0.5}}",
        "training.tokens=3000",
    ]
    prepared = done.folder / "artifacts"  # the same windows
    check_replay(load_recipe(small, [*PLAIN, *model, *third]), tmp_path / "third", prepared, pool)


def check_replay(recipe, out, prepared, pool):
    """Forgetting is seen on the held-out windows of the pool, before and after, and is paid for."""
    done = run_pipeline(
        recipe, out, until="forgetting", artifacts=prepared, progress=Progress(Console(quiet=True))
    )
    held_out = read_columns(pool.artifacts["windows"].parts, ["tokens", "target_bytes"], "test")
    tokens_WN1 = torch.from_numpy(tokens_array(held_out)).long()
    size = sum(held_out["target_bytes"].to_pylist())
    forgetting = done.artifacts["forgetting"]
    found = _pool(plan_run(recipe, out, prepared), forgetting)
    for when, one in (("before", pool), ("after", done)):
        nats = window_nats(load_model(one.artifacts["model"].path), tokens_WN1).sum()
        assert found[when] == pytest.approx(float(nats) / size / np.log(2), rel=1e-6)
    assert found["before"] != found["after"]
    assert found["replayed_tokens"] == recipe.steps * 4 * 48
    assert forgetting.manifest["ledger"]["evaluation"]["tokens"] == 2 * len(tokens_WN1) * 48
    unique = done.artifacts["model"].manifest["details"]["unique_tokens"]
    assert unique == 2 * recipe.steps * 4 * 48  # less than a pass over either
