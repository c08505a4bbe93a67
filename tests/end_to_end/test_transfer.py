"""A whole transfer, by the README's command, over a step between pool and target: pretraining found again,
replay, held-out text that leaked."""

import json
import math
import random
import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from bkray.config import load_recipe, parse_recipe
from bkray.corpus.tokenizer import train_tokenizer
from bkray.corpus.windows import read_columns, tokens_array
from bkray.evaluation import window_nats
from bkray.model import build_model
from bkray.reporting.runlog import RunLog
from bkray.runtime.artifacts import write_manifest
from bkray.runtime.pipeline import finished_run
from bkray.training import export_model, load_model

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

README = Path(__file__).parents[2] / "README.md"
WINDOW = 48
LEAKED = 6  # of the target's held-out documents, put into the pool; as many once more nearly so


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    """A pool, into which the target's held-out text has leaked, and a smaller target in WikiText-2's form."""
    folder = tmp_path_factory.mktemp("transfer")
    lines = (texts / "a.jsonl").read_text().splitlines()
    articles = [f" = Title {number} = \n {json.loads(line)['text']}\n" for number, line in enumerate(lines)]
    target = folder / "target"
    target.mkdir()
    for split, rows in (("train", articles[:20]), ("valid", articles[20:30]), ("test", articles[30:])):
        (target / f"{split}.txt").write_text("".join(rows))
    other = [shuffled(json.loads(line)["text"]) for line in (texts / "b.jsonl").read_text().splitlines()]
    leaked = [*articles[30 : 30 + LEAKED], *map(nearly, articles[20 : 20 + LEAKED])]
    for name, documents in (("pool", other[:30] + leaked), ("middle", other[20:]), ("one", other[:1])):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in documents)
        )
    return folder


def shuffled(text):
    """Other text of the same words, which all texts of these tests have in one order."""
    words = text.split()
    return " ".join(random.Random(text).sample(words, len(words)))


def nearly(text):
    """`text` with another word in every twelfth place."""
    return " ".join("other" if place % 12 == 11 else word for place, word in enumerate(text.split(" ")))


@pytest.fixture(scope="module")
def transfer(folder):
    """The README's command with text at hand, as arguments, for small recipes and the text of `folder`."""
    (line,) = re.findall(r"^bkray transfer (?:.*\\\n)+.*", README.read_text(), re.MULTILINE)
    _, command, recipe, pool, target = shlex.split(line.replace("\\\n", " "))
    assert recipe == "pipelines/recipes/transfer.yaml"
    pool = re.sub(r"path: \[.*\]", f"path: [{folder / 'pool.jsonl'}]", pool).replace("0.01", "0.1")
    return command, small(folder), pool, target.replace("FOLDER", str(folder / "target"))


def small(folder):
    """The file of a transfer with the phases of the README's, on recipes whose text is not there, and a step
    between them."""
    common = {
        "window": WINDOW,
        "training": {
            "tokens": 8000,
            "batch_tokens": 384,
            "eval_windows": 8,
            "eval_every": 10,
            "workers": 1,
        },
        "samples": {"prompts": ["the scan"], "tokens": 8},
    }
    recipes = {
        "pool": {
            **common,
            "corpus": {"kind": "jsonl", "path": "nowhere", "validation": 0.1, "test": 0.1},
            "cleaning": {
                "max_rejects": 0.0,
                "leakage": {"held_out_of": {"it": articles(folder / "target")}, "overlap": None},
            },
            "tokenizer": {"vocab_size": 300},
            "training": {**common["training"], "tokens": 12_000},
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 2},
        },
        "middle": {
            **common,
            "corpus": {"kind": "jsonl", "path": str(folder / "middle.jsonl"), "validation": 0.2, "test": 0.2},
            "training": {**common["training"], "tokens": 4000},
        },
        "target": {
            **common,
            "corpus": articles(folder / "nowhere"),
            "training": {**common["training"], "tokens": 20_000},
        },
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **recipe}))
    learning = "training.distillation={teachers: [pretrain], top_k: 4}"
    tuning = ["training.freeze=1", "training.activation_cache={}", "training.replay={share: 0.5}"]
    phases = [
        {"name": "pretrain", "recipe": "pool.yaml"},
        {"name": "middle", "recipe": "middle.yaml", "overrides": [learning]},
        {"name": "target", "recipe": "target.yaml", "overrides": tuning},
    ]
    path = folder / "transfer.yaml"
    path.write_text(yaml.safe_dump({"name": "tuned", "phases": phases}))
    return path


def articles(folder):
    return {"kind": "text", "path": str(folder), "document_start": "^ = [^=].* = $"}


def bits(model, windows):
    """Held-out bits per byte, computed here."""
    rows = read_columns(windows.parts, ["tokens", "target_bytes"], "test")
    tokens_WN1 = torch.from_numpy(tokens_array(rows)).long()
    nats = float(window_nats(load_model(model), tokens_WN1).sum())
    return nats / sum(rows["target_bytes"].to_pylist()) / math.log(2.0)


def check_looks(phase, start, tuned, own, before):
    """Every figure is that of the phase's model, or the one before, on its text or that of the one before."""
    assert phase["before"] == pytest.approx(bits(start, own["windows"]), rel=1e-6)
    assert phase["after"] == pytest.approx(bits(tuned, own["windows"]), rel=1e-6)
    assert phase["pool"]["before"] == pytest.approx(bits(start, before["windows"]), rel=1e-6)
    assert phase["pool"]["after"] == pytest.approx(bits(tuned, before["windows"]), rel=1e-6)


def test_pretrain_and_tune(bkray_here, script, transfer, folder, tmp_path):
    out = tmp_path / "out"
    finished = bkray_here(*transfer, "--out", out, "--cpus", 2)
    assert finished.returncode == 0, finished.stderr
    assert f"report    {out / 'tuned' / 'report.html'}" in finished.stdout
    middle, pretrained = sorted((out / "phases").iterdir())
    _, pool_made = finished_run(pretrained)
    _, middle_made = finished_run(middle)
    target, made = finished_run(out / "tuned")
    reasons = pool_made["decontaminated"].manifest["details"]["reasons"]
    documents = pq.read_table(pool_made["documents"].parts, columns=["text", "split"]).to_pylist()
    in_training = [row["text"] for row in documents if row["split"] == "train" and "Title" in row["text"]]
    assert 0 < len(in_training) < 2 * LEAKED, "some of them lie in the pool's own held-out splits"
    assert sum(reasons.values()) == len(in_training)
    assert reasons.keys() == {"equal, held out of it", "near duplicate, held out of it"}
    assert middle_made["decontaminated"].manifest["removed"] == 0
    teachers = middle_made["soft_targets"].manifest["configuration"]["training"]["distillation"]["teachers"]
    assert teachers == [str(pretrained / "model")]

    seen = json.loads((out / "tuned" / "summary.json").read_text())["seen_before"]
    assert (seen["reasons"], seen["lost"]) == ({}, None)

    results = json.loads((out / "tuned" / "transfer.json").read_text())
    first, step, last = results["phases"]
    assert (first["name"], first["before"], first["pool"]) == ("pretrain", None, None)
    models = [run / "model" for run in (pretrained, middle, out / "tuned")]
    check_looks(step, *models[:2], middle_made, pool_made)
    check_looks(last, *models[1:], made, middle_made)
    assert last["pool"]["replayed_tokens"] == target.recipe.steps * 4 * WINDOW
    assert results["shared_flops"] == pytest.approx(first["flops"] + step["flops"])
    assert min(first["flops"], last["flops"]) > 0
    assert last["flops"] == results["target_flops"]
    assert RunLog.read(out / "tuned" / "metrics.jsonl")[-1]["activations_reused"] > 0
    assert [phase["leaked"] for phase in results["phases"]] == [reasons, {}, None]
    looked = made["windows"].splits["test"] + middle_made["windows"].splits["test"]
    charged = [made[name].manifest["ledger"]["evaluation"]["tokens"] for name in ("evaluation", "forgetting")]
    assert sum(charged) == 2 * looked * WINDOW
    page = (out / "tuned" / "transfer.html").read_text()
    assert page.count("<svg") == 3
    assert f"../phases/{pretrained.name}/report.html" in page
    assert "Before tuning" in (out / "tuned" / "report.html").read_text()
    check_found_again(bkray_here, script, transfer, folder, tmp_path, out, pretrained, middle)


def check_found_again(bkray_here, script, transfer, folder, tmp_path, out, pretrained, middle):
    """Nothing is trained twice, by command or script, whatever changes beside; a model that was removed is
    made as it was."""
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    moved = shutil.copy2(folder / "pool.jsonl", tmp_path)
    changes = ("pretrain.training.log_every=3", f"pretrain.corpus.path={moved}")
    again = script(*transfer, *changes, "--out", out, "--cpus", 2)
    assert again.count("already complete, nothing to do") == 3
    assert "pretrain keeps the log_every that it began with" in " ".join(again.split())
    assert load_recipe(pretrained / "resolved.yaml").corpus.path == str(moved)
    other = bkray_here(*transfer, "name=other", "seed=1", "training.workers=9", "--out", out)
    assert other.returncode == 2
    assert "training.workers 9" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == times

    weights = (middle / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(middle / "model")
    mended = bkray_here(*transfer, "--out", out, "--cpus", 2)
    assert mended.returncode == 0, mended.stderr
    assert mended.stderr.count("already complete, nothing to do") == 2
    assert (middle / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["corpus={kind: jsonl, path: FOLDER/pool.jsonl, text_field: words}"],
            "pool.jsonl: no text_field 'words'; there are text",
        ),
        (
            ["training.replay=null", "window=40000", "training.batch_tokens=40000", "training.tokens=40000"],
            "is too small for one window of 40000 tokens",
        ),
        (
            ["corpus={kind: jsonl, path: FOLDER/one.jsonl, validation: 0.1, test: 0.1}"],
            "split is too small for one window of 48 tokens, it has 0 documents of 0 bytes in all",
        ),
        (
            ["training.replay=null", "training.distillation={teachers: [pretrain], top_k: 301}"],
            "training.distillation.top_k 301 is more than the 300 tokens of the teachers' vocabulary",
        ),
    ],
)
def test_what_is_wrong_with_the_target_shows_before_anything_is_trained(
    bkray_here, transfer, folder, tmp_path, changes, message
):
    out = tmp_path / "out"
    changes = (change.replace("FOLDER", str(folder)) for change in changes)
    refused = bkray_here(*transfer, *changes, "--out", out, "--cpus", 2)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not [*out.rglob("model"), *out.rglob("checkpoints")]


@pytest.mark.parametrize(
    ("named", "setting"),
    [
        ("training.distillation={teachers: [RUN/model], top_k: 4}", r"training\.distillation\.teachers\[0\]"),
        ("selection={kind: entropy, keep: 0.5}", r"proxy\.folder"),
        ("evaluation={pool: RUN}", r"evaluation\.pool"),
    ],
)
def test_a_model_of_another_vocabulary_shows_before_anything_is_trained(
    bkray_here, transfer, tmp_path, texts, named, setting
):
    tokenizer = train_tokenizer([(texts / "a.jsonl").read_text()], 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = {"kind": "resnet_bk", "d_model": 48, "n_layers": 2}
    recipe = parse_recipe({"name": "teacher", "corpus": {"kind": "docstrings"}, "model": model})
    size = tokenizer.get_vocab_size()
    network = build_model(recipe.model, size)
    run = tmp_path / "other"
    export_model(run / "model", network, recipe, tmp_path / "tokenizer.json", size, {})
    made = {"configuration": {"window": WINDOW}, "inputs": {"training_set": "k", "windows": "k"}}
    write_manifest(run / "model", made)
    for name in made["inputs"]:
        (run / "artifacts" / f"{name}-k").mkdir(parents=True)
        write_manifest(run / "artifacts" / f"{name}-k", {"key": "k"})
    changes = ["training.replay=null", named.replace("RUN", str(run))]
    changes += [f"proxy={{folder: {run / 'model'}}}"] if "entropy" in named else []
    refused = bkray_here(*transfer, *changes, "--out", tmp_path / "out", "--cpus", 2)
    assert refused.returncode == 2
    assert re.search(rf"{setting} \S+ has another vocabulary than phase pretrain", refused.stderr)
    assert not [*(tmp_path / "out").rglob("model"), *(tmp_path / "out").rglob("checkpoints")]


def test_a_name_that_is_taken_is_refused_before_anything_is_trained(bkray_here, transfer, tmp_path):
    taken = tmp_path / "tuned"
    taken.mkdir()
    (taken / "notes.txt").write_text("not a run")
    refused = bkray_here(*transfer, "--out", tmp_path, "--cpus", 2)
    assert refused.returncode == 2
    assert f"{taken} is not empty and holds no run of bkray" in refused.stderr
    assert not (tmp_path / "phases").exists()
