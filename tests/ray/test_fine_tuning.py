"""A run that starts from a model with another vocabulary: its own tokenizer, the rows that both share."""

import json

import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from bkray.config import load_recipe
from bkray.corpus import load_tokenizer
from bkray.corpus.tokenizer import train_tokenizer
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime.pipeline import run_pipeline
from bkray.training import export_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

PLAIN = ["difficulty=null", "selection=null", "curriculum=null", "proxy=null", "sampling=null"]
PLAIN += ["augmentation=[]", "training.trackers=[]", "training.skip=null", "training.average=null"]


def test_the_target_brings_its_vocabulary_and_its_layers_thaw(small, tmp_path):
    """At hardly a rate the weights stay those of the start."""
    sizes = [
        "model={kind: resnet_bk, d_model: 16, n_layers: 2}",
        "training.tokens=4000",
        "training.workers=1",
    ]
    pool = train_tokenizer(["das größte Rathaus der Stadt, die größte Stadt"] * 3, 280)
    pool.save(str(tmp_path / "pool.json"))
    recipe = load_recipe(small, [*PLAIN, *sizes])
    export_model(
        tmp_path / "start",
        build_model(recipe.model, pool.get_vocab_size()),
        recipe,
        tmp_path / "pool.json",
        pool.get_vocab_size(),
        {},
    )
    transfer = [f"training.start_from={tmp_path / 'start'}", "training.start_vocabulary=overlap"]
    transfer += ["training.unfreeze={at: [0.6]}", "training.lr=1e-9", "training.log_every=1"]
    done = run_pipeline(
        load_recipe(small, [*PLAIN, *sizes, *transfer]), tmp_path, progress=Progress(Console(quiet=True))
    )
    target = load_tokenizer(done.artifacts["tokenizer"].path / "tokenizer.json")
    shared = pool.get_vocab().keys() & target.get_vocab().keys()
    counts = {"shared": len(shared), "new": target.get_vocab_size() - len(shared)}
    assert done.summary["start_vocabulary"] == counts
    assert counts["new"] > 0
    assert f"{counts['shared']} tokens of the start model's" in done.artifacts["model"].manifest["summary"]
    folders = (tmp_path / "start", done.artifacts["model"].path)
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    for token in shared:
        at = (pool.token_to_id(token), target.token_to_id(token))
        rows = (before["embedding.weight"][at[0]], after["embedding.weight"][at[1]])
        torch.testing.assert_close(*map(torch.from_numpy, rows), atol=1e-6, rtol=0)
    assert json.loads((folders[1] / "config.json").read_text())["vocab_size"] == target.get_vocab_size()
    frozen = [line["frozen_layers"] for line in RunLog.read(done.folder / "metrics.jsonl")]
    assert sorted(set(frozen), reverse=True) == [1, 0]
    assert frozen == sorted(frozen, reverse=True)
