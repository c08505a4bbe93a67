"""The savings that need the pipeline: losses and predictions of other models as columns, a trained start."""

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from bkray.config import load_recipe
from bkray.corpus.mapped import map_windows
from bkray.corpus.windows import read_columns, tokens_array
from bkray.difficulty import score_windows, scoring_dtype
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime import distillation
from bkray.runtime.pipeline import run_pipeline
from bkray.runtime.results import spent
from bkray.training import load_model
from bkray.training.cost.flops import forward_flops
from bkray.training.techniques.distillation import soft_targets

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

PLAIN = ["difficulty=null", "selection=null", "curriculum=null", "augmentation=[]", "training.trackers=[]"]
PLAIN += ["training.workers=1"]


def run(recipe, out, **options):
    return run_pipeline(recipe, out, until="model", progress=Progress(Console(quiet=True)), **options)


def test_a_run_starts_from_another_selects_tokens_by_the_proxy_and_both_teach_a_third(
    small, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = ["model={kind: resnet_bk, d_model: 32, n_layers: 2}"]
    first = load_recipe(small, [*PLAIN, *model, "proxy=null", "training.tokens=8000"])
    started = run(first, tmp_path / "first").artifacts["model"].path
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
    np.testing.assert_array_equal(
        np.stack(training_set["reference_loss"].to_numpy()), expected["token_loss"].astype(np.float16)
    )
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
    monkeypatch.setattr(distillation, "_PART_VALUES", 48 * 5 * 50)
    teachers = [started, done.artifacts["model"].path]
    teach(small, [path.relative_to(tmp_path) for path in teachers], tmp_path / "third", done.folder)


def teach(small, teachers, out, shared):
    """A smaller student, whose windows lie in another order than by their ids."""
    named = ", ".join(map(str, teachers))
    changes = [
        *("name=third", "tokenizer={}", "difficulty={kind: compression}", "selection=null", "proxy=null"),
        *("augmentation=[]", "training.trackers=[]", "training.tokens=8000", "training.log_every=1"),
        "training.workers=1",
        "model={kind: resnet_bk, d_model: 16, n_layers: 1}",
        f"training.distillation={{teachers: [{named}], top_k: 5}}",
    ]
    done = run(load_recipe(small, changes), out, artifacts=shared / "artifacts")
    ordered, asked = done.artifacts["training_set"], done.artifacts["soft_targets"]
    rows = read_columns(ordered.parts, ["window_id", "tokens"])
    assert len(asked.parts) == -(-rows.num_rows // 50) > 1
    assert read_columns(asked.parts, ["window_id"])["window_id"].equals(rows["window_id"])
    models, tokens = [load_model(path) for path in teachers], tokens_array(rows)
    for column, expected in zip(("soft_ids", "soft_log_probs"), soft_targets(models, tokens, 5), strict=True):
        there = map_windows(asked.parts, column)
        np.testing.assert_array_equal(there[np.arange(len(tokens))], expected.reshape(len(tokens), -1))
    on_disk = sum(path.stat().st_size for path in asked.parts)
    assert on_disk < len(tokens) * (48 * 5 * 4 + 16) + len(asked.parts) * 4096, "4 bytes for each of the k"
    assert asked.manifest["details"]["dtype"] in str(scoring_dtype(torch.device("cpu")))
    cost = asked.manifest["ledger"]["teacher"]
    assert cost["flops"] == len(tokens) * sum(forward_flops(model, 48) for model in models)
    assert cost["tokens"] == len(tokens) * 48 * 2
    assert spent([asked])[0].table()["teacher"]["seconds"] == pytest.approx(asked.manifest["seconds"])
    lines = RunLog.read(done.folder / "metrics.jsonl")
    assert lines[-1]["distillation_loss"] < lines[0]["distillation_loss"]
