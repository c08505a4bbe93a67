"""The benchmark of transfer on a tiny pool: what it chooses, what it looks at, and what it finds again."""

import json
import math
import random
import re

import pytest
import torch
import yaml
from bench_transfer import arguments, main

from bkray.training import load_model

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.usefixtures("two_cpus"),
]

DIVERGES = "training.lr=1e12"
TRIES = ["--try", "training.lr=1e-3", "training.lr=1e-2", DIVERGES, "--try-at", "0.5"]
TRIES += ["--scratch-try", "training.lr=3e-3", "training.lr=1e-2 training.optimizer=muon", DIVERGES]
TRIES += ["--scratch-try-at", "0.5"]


@pytest.fixture(scope="module")
def given(texts, tmp_path_factory):
    """Arguments for two budgets, one level and one seed, three settings a side."""
    folder = tmp_path_factory.mktemp("transfer")
    recipe = {
        "corpus": {"kind": "jsonl", "validation": 0.2, "test": 0.2},
        "window": 48,
        "training": {"batch_tokens": 96, "eval_windows": 8, "workers": 1, "tokens": 4000},
        "samples": None,
    }
    texts_ = [json.loads(line)["text"].split() for line in (texts / "b.jsonl").read_text().splitlines()]
    other = [" ".join(random.Random(place).sample(words, len(words))) for place, words in enumerate(texts_)]
    (folder / "pool.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in other))
    small = {"tokenizer": {"vocab_size": 300}, "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 1}}
    for name, path, own in (
        ("pool", folder / "pool.jsonl", small),
        ("target", texts / "a.jsonl", {"evaluation": None}),
    ):
        corpus = {**recipe["corpus"], "path": str(path)}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"name": name, **recipe, **own, "corpus": corpus})
        )
    phases = [{"name": name, "recipe": f"{file}.yaml"} for name, file in (("pre", "pool"), ("it", "target"))]
    (folder / "transfer.yaml").write_text(yaml.safe_dump({"name": "it", "phases": phases}))
    file = str(folder / "transfer.yaml")
    return [file, *TRIES, "--seeds", "0", "--epochs", "0.5", "--budgets", "0.5", "1", "--out", str(folder)]


@pytest.fixture
def bench(given, capsys):
    def call(*arguments_):
        main(arguments([*given, *arguments_]))
        return capsys.readouterr().out

    return call


def models(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_settings_are_chosen_on_validation_and_only_the_chosen_see_the_test_split(bench, given, tmp_path):
    out = tmp_path / "out"
    told = bench("--out", str(out))
    looked_at = sorted(path.parent.name for path in out.glob("it-*/summary.json"))
    trained = sorted(path.parent.name for path in out.glob("it-*/model"))
    assert len(trained) == 2 + 2 + 1, "the trials that ended, and the budget that none was made for"
    assert len(looked_at) == 1 + 2
    for side in ("from scratch", "tuned"):
        (tried,) = re.findall(rf"it, {side}, 0.5 of an epoch, validation, seed 0: (.*)", told)
        bits = {
            setting: float(found) for setting, found in re.findall(r"(\S.*?) (\d\.\d{4}|inf)(?:; |$)", tried)
        }
        assert len(bits) == 3
        assert bits[DIVERGES] == math.inf
        (chosen,) = re.findall(rf"it, {side}, .*\n  chosen of 3: (.*)", told)
        assert bits[chosen] == min(bits.values())
        assert f"it, {side}: 3 trials, " in told
    (line,) = re.findall(r"^\| it \| 0.5 .*", told, re.MULTILINE)
    held_out = json.loads((next(out.glob("it-scratch-*/summary.json"))).read_text())["held_out"]
    assert held_out["split"] == "test"
    assert f"| {held_out['bits_per_byte']:.4f} |" in line

    before = models(out)
    assert bench("--out", str(out)) == told
    assert models(out) == before


def test_a_student_pays_for_the_predictions_of_a_teacher_that_is_given(bench, tmp_path):
    out = tmp_path / "out"
    told = bench("--out", str(out), "--teacher", "model.d_model=32", "training.tokens=8000")
    assert "| distilled | saving | with the trials of both | with the teacher in full | students" in told
    student, *_ = (json.loads(path.read_text())["ledger"] for path in out.glob("it-distilled-*/summary.json"))
    (teacher,) = (json.loads(path.read_text())["ledger"] for path in out.glob("it-teacher-*/summary.json"))
    assert student["by_kind"]["teacher"]["flops"] > 0
    assert "teacher" not in teacher["by_kind"]
    (before,) = re.findall(r"it, distilled: (\S+) FLOPs before", told)
    looks = sum(teacher["by_kind"][kind]["flops"] for kind in ("validation", "evaluation"))
    assert float(before) == pytest.approx(teacher["total_flops"] - looks, rel=0.01)
    assert not (out / "phases").exists(), "nothing is pretrained"


def test_a_student_may_start_from_layers_of_its_teacher(bench, given, tmp_path):
    out, deep = tmp_path / "out", "model={kind: resnet_bk, d_model: 16, n_layers: 2}"
    tries = ["--try", "training.lr=1e-9 training.distillation=null", "--scratch-try", "training.lr=1e-2"]
    bench("--out", str(out), *tries, "--teacher", deep, "training.tokens=8000", "--student-layers", "1")
    (teacher,) = out.glob("it-teacher-*/model")
    before = load_model(teacher).blocks[0].state_dict()
    students = list(out.glob("it-distilled-*"))
    assert len(students) == 2  # of two budgets
    for student in students:
        assert "teacher" not in json.loads((student / "summary.json").read_text())["ledger"]["by_kind"]
        (block,) = load_model(student / "model").blocks
        for name, value in block.state_dict().items():
            torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    with pytest.raises(SystemExit):
        arguments([*given, "--student-layers", "1"])


def test_targets_are_tuned_from_one_pretrained_model_that_is_paid_once(bench, texts, tmp_path):
    out, both = tmp_path / "out", []
    for name, lines in (("one", "a.jsonl"), ("two", "b.jsonl")):
        (tmp_path / lines).write_text((texts / lines).read_text())
        both.append(f"{name}={{kind: jsonl, path: {tmp_path / lines}, validation: 0.2, test: 0.2}}")
    setting = "training.lr=1e-2"
    told = bench("--out", str(out), "--try", setting, "--scratch-try", setting, "--targets", *both)
    (pretrained,) = (out / "phases").iterdir()
    ledger = json.loads((pretrained / "summary.json").read_text())["ledger"]["by_kind"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\| .*", told, re.M)]
    levels = {row[0]: row for row in cells if len(row) == 9}
    assert float(levels["all 2"][3]) == pytest.approx(
        sum(float(levels[name][3]) for name in ("one", "two")), rel=0.01
    )
    taken = {tuple(row[:2]): row for row in cells if len(row) == 8}
    for name in ("one", "two"):
        before = taken[name, "before"]
        assert before[2] == f"{ledger['training']['tokens']:,}"
        assert before[6] == f"{ledger['preparation']['seconds']:,.0f}"
        tokens = [taken[name, f"tuned, {share} of an epoch"][2] for share in ("0.5", "1")]
        assert int(tokens[1].replace(",", "")) > int(tokens[0].replace(",", "")) > 0
