"""What users get wrong: one clear message, exit code 2, nothing half-written."""

import gzip
import importlib.util
import json
import re
import shutil

import pytest
import yaml

from bkray.config import dump_yaml, load_recipe
from bkray.corpus.tokenizer import train_tokenizer
from bkray.model import build_model
from bkray.training import export_model

pytestmark = pytest.mark.end_to_end

NOT_INSTALLED = "{kind: back_translation, translator: {kind: apertium, forth: eng-tlh, back: tlh-eng}}"


@pytest.fixture
def bkray(bkray_here):
    return bkray_here


def recipe(tmp_path, **changes):
    values = {"name": "bad", "corpus": {"kind": "text", "path": str(tmp_path / "text.txt")}, "window": 32}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def refused(bkray, path, out, *arguments):
    finished = bkray("run", path, *arguments, "--out", out)
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    for of_ray in ("ray::", "ray.data"):
        assert of_ray not in finished.stderr, "one clear message, without Ray's own"
    assert not list(out.rglob(".partial-*")), "something is half-written"
    return finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.lrr=1", "modl=1"], "did you mean lr?"),
        (["training.workers=4", "--cpus", "2"], "training.workers 4 x 1 CPU = 4 CPUs, but there are 2"),
        (["training.workers=999", "training.batch_tokens=31968", "--cpus", "999"], "MiB are available: set"),
        (["training.gradient_cache={kind: stale, max_bytes: 1000}"], "1,000 does not hold one gradient"),
        (
            [f"augmentation=[{NOT_INSTALLED}]"],
            "cannot translate eng-tlh with Apertium",
        ),
        ([], "text.txt"),
    ],
)
def test_before_anything_starts(bkray, tmp_path, arguments, message):
    if message != "text.txt":
        (tmp_path / "text.txt").write_text("words " * 1000)
    assert message in refused(bkray, recipe(tmp_path), tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_the_disk_does_not_hold(bkray, tmp_path):
    with open(tmp_path / "text.txt", "wb") as sparse:
        sparse.truncate(shutil.disk_usage(tmp_path).total)
    stderr = refused(bkray, recipe(tmp_path), tmp_path / "out")
    assert re.search(r"MiB of corpus need about [\d,]+ MiB of disk .*, but [\d,]+ MiB are free", stderr)
    assert not (tmp_path / "out").exists()


def test_a_loop_whose_translator_is_missing(bkray, tmp_path):
    values = {"name": "loop", "recipe": str(recipe(tmp_path)), "rounds": 1}
    values["selection"] = {"kind": "entropy"}
    (tmp_path / "text.txt").write_text("words " * 1000)
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(values))
    copies = f"augmentation=[{NOT_INSTALLED}]"
    finished = bkray("active", tmp_path / "loop.yaml", copies, "--out", tmp_path / "out")
    assert finished.returncode == 2, finished.stderr
    assert "cannot translate eng-tlh with Apertium" in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "prepare", "plan"])
def test_an_out_that_is_a_file(bkray, tmp_path, command):
    (tmp_path / "text.txt").write_text("words " * 1000)
    (tmp_path / "out").write_text("mine")
    finished = bkray(command, recipe(tmp_path), "--out", tmp_path / "out")
    assert finished.returncode == 2, finished.stderr
    assert f"--out {tmp_path / 'out'}: {tmp_path / 'out'} is not a folder" in finished.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_a_recipe_that_is_not_there(bkray, tmp_path):
    assert "no such file" in refused(bkray, tmp_path / "none.yaml", tmp_path / "out")


def test_a_start_model_of_another_architecture_and_a_damaged_one(bkray, tmp_path):
    (tmp_path / "text.txt").write_text("words " * 1000)
    model = {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 2}
    there = load_recipe(recipe(tmp_path, model=model))
    tokenizer = train_tokenizer(["words"], 257)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    network, size = build_model(there.model, tokenizer.get_vocab_size()), tokenizer.get_vocab_size()
    export_model(tmp_path / "model", network, there, tmp_path / "tokenizer.json", size, {})
    start = f"training.start_from={tmp_path / 'model'}"
    wider = recipe(tmp_path, model={**model, "d_model": 32})
    assert "model.d_model is 32 here and 16 there" in refused(bkray, wider, tmp_path / "out", start)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    stderr = refused(bkray, recipe(tmp_path, model=model), tmp_path / "out", start)
    assert re.search(r"training\.start_from \S+/model holds no exported model", stderr)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_is_not_installed(bkray, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else there(name))
    (tmp_path / "text.txt").write_text("words " * 1000)
    stderr = refused(bkray, recipe(tmp_path), tmp_path / "out", "training.trackers=[wandb]")
    assert "wandb, which is not installed: pip install 'bkray[trackers]'" in stderr
    assert not (tmp_path / "out").exists()


def test_compiling_without_a_compiler_or_a_model_that_can_be_compiled(bkray, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("words " * 1000)
    (tmp_path / "breaking.py").write_text(
        "from torch import nn\n\n\nclass Breaking(nn.Embedding):\n"
        "    def __init__(self, vocab_size):\n        super().__init__(vocab_size, vocab_size)\n\n"
        "    def forward(self, tokens):\n        print(tokens)\n        return super().forward(tokens)\n"
    )
    arguments = ["run", recipe(tmp_path), "training.compile=true", "--out", tmp_path / "out"]
    monkeypatch.syspath_prepend(tmp_path)
    own = bkray(*arguments, "model={kind: import, target: 'breaking:Breaking'}")
    monkeypatch.setenv("CXX", "no-such-compiler")
    none = bkray(*arguments)
    for finished, message in ((none, "needs a C++ compiler"), (own, "torch cannot compile the model")):
        assert finished.returncode == 2, finished.stderr
        assert message in finished.stderr
        assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_a_corpus_too_small_for_one_window(bkray, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"paragraph {i}" for i in range(300)))
    assert "too small for one window of 512 tokens" in refused(
        bkray, recipe(tmp_path, window=512, training={"batch_tokens": 4096}), tmp_path / "out"
    )
    finished = bkray("prepare", recipe(tmp_path, window=8), "--out", tmp_path / "out")
    assert finished.returncode == 0, f"the mended recipe is refused: {finished.stderr}"


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_a_cut_gz_and_an_empty_file(bkray, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "empty.txt").touch()
    path = recipe(tmp_path, corpus={"kind": "text", "path": str(empty)})
    assert "the corpus is empty (1 files of 0 bytes)" in refused(bkray, path, tmp_path / "out")
    data = gzip.compress(("words and words \n\n" * 5000).encode())
    (tmp_path / "cut.txt.gz").write_bytes(data[: len(data) // 2])
    path = recipe(tmp_path, corpus={"kind": "text", "path": str(tmp_path / "cut.txt.gz")})
    assert "cut.txt.gz" in refused(bkray, path, tmp_path / "out")


@pytest.mark.ray
@pytest.mark.usefixtures("two_cpus")
def test_too_many_rejects_name_the_first(bkray, tmp_path):
    lines = [json.dumps({"text": "x" * 100}) for _ in range(20)] + ["{broken"] * 20
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    path = recipe(tmp_path, corpus={"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")})
    stderr = refused(bkray, path, tmp_path / "out")
    assert "20 of 40 documents were rejected" in stderr
    assert "document 20 of rows.jsonl" in stderr


def test_an_output_folder_of_another_recipe(bkray, tmp_path):
    (tmp_path / "text.txt").write_text("words " * 1000)
    run = tmp_path / "out" / "bad"
    run.mkdir(parents=True)
    finished = bkray("plan", recipe(tmp_path), "--out", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    (run / "resolved.yaml").write_text(dump_yaml(load_recipe(recipe(tmp_path), ["window=64"])))
    stderr = refused(bkray, recipe(tmp_path), tmp_path / "out")
    assert "window: 64 there, 32 now" in stderr


def test_generate_and_report_want_a_finished_run(bkray, tmp_path):
    for command in ("generate", "report", "compress"):
        finished = bkray(command, tmp_path)
        assert finished.returncode == 2
        assert "name the folder of a finished" in finished.stderr


def test_a_sweep_over_a_key_that_the_recipe_lacks(bkray, small, tmp_path):
    spec = tmp_path / "sweep.yaml"
    values = {
        "name": "tiny",
        "recipe": "small.yaml",
        "space": {"selecton.keep": {"kind": "choice", "values": [0.5]}},
    }
    spec.write_text(yaml.safe_dump(values))
    finished = bkray("sweep", spec, "--out", tmp_path / "out")
    assert finished.returncode == 2
    assert "the base recipe has no section selecton" in finished.stderr
    assert not (tmp_path / "out").exists()
