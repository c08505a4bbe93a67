"""bkray compare, for real: tuned rates, equal steps and seconds, paired figures; going on, and refusing."""

import json
import math
import shutil

import numpy as np
import pytest
import yaml

from bkray.config import UserError
from bkray.evaluation import paired_difference
from bkray.runtime.comparison import run_comparison

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]


@pytest.fixture(scope="module")
def spec(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("comparison")
    base = {
        "name": "base",
        "corpus": {"kind": "jsonl", "path": str(texts), "validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "window": 48,
        "training": {"batch_tokens": 384, "checkpoint_every": 5},
        "samples": None,
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    values = {
        "name": "models",
        "recipe": "base.yaml",
        "arms": {
            "bk": {"model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1}},
            "gru": {
                "model": {"kind": "gru", "d_model": 96, "n_layers": 2},
                "selection": {"kind": "entropy", "keep": 0.9},
                "proxy": {"d_model": 16, "n_layers": 1, "tokens": 4000},
            },
        },
        "reference": "bk",
        "learning_rates": [1e-4, 1e-2],
        "tuning_steps": 6,
        "steps": [12],
        "timing_rounds": 5,
        "seeds": [0, 1],
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def compared(spec, two_cpus, tmp_path_factory):
    """`--out` with the finished comparison, not to be changed."""
    out = tmp_path_factory.mktemp("compared")
    run_comparison(spec, out=out)
    return out


@pytest.fixture
def out(compared, tmp_path):
    """A copy of it."""
    return shutil.copytree(compared, tmp_path / "out")


def charged(folder, *stages):
    """FLOPs by kind of what the comparison's artifacts of these stages cost."""
    manifests = [path for stage in stages for path in folder.glob(f"artifacts/{stage}-*/manifest.json")]
    ledgers = [json.loads(path.read_text())["ledger"] for path in manifests]
    return {kind: cost["flops"] for ledger in ledgers for kind, cost in ledger.items()}


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/result.json")}


def test_the_whole_comparison(spec, out):
    folder = out / "models"
    results = json.loads((folder / "results.json").read_text())
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert arms["bk"]["lr"] == 1e-2  # ten steps at 1e-4 teach nothing
    assert set(arms["gru"]["tried"]) == {"0.0001", "0.01"}
    assert arms["bk"]["relative_time"] == 1.0
    rows = {(row["kind"], row["arm"]): row for row in results["rows"]}
    assert rows["steps", "bk"]["difference"] is None
    assert rows["steps", "gru"]["steps"] == 12
    assert arms["gru"]["data_seconds"] > arms["bk"]["data_seconds"] + 12 * arms["bk"]["step_seconds"]
    assert "no time left: data stages take +" in rows["seconds", "gru"]["error"]

    lr = arms["gru"]["lr"]
    read = {
        arm: [
            json.loads((folder / f"runs/{arm}/test-lr{rate:g}-steps12-seed{seed}/result.json").read_text())
            for seed in (0, 1)
        ]
        for arm, rate in (("bk", 1e-2), ("gru", lr))
    }
    nats = {arm: np.array([one["nats"] for one in group]) for arm, group in read.items()}
    bytes_W = np.array(read["bk"][0]["bytes"])
    assert rows["steps", "gru"]["bits_per_byte"] == pytest.approx(
        nats["gru"].mean(0).sum() / bytes_W.sum() / math.log(2)
    )
    interval = paired_difference(nats["gru"], nats["bk"], bytes_W)
    assert rows["steps", "gru"]["difference"] == [interval.bits_per_byte, interval.low, interval.high]
    assert not np.array_equal(nats["bk"][0], nats["bk"][1])
    selecting = charged(folder, "proxy", "scored")
    assert {"proxy_training", "scoring"} <= selecting.keys()
    for arm, data in (("bk", 0.0), ("gru", sum(selecting.values()))):
        trained = np.mean([one["flops"] for one in read[arm]])
        assert rows["steps", arm]["flops"] == pytest.approx(data + trained), arm
    assert "no time left: data stages take" in (folder / "report.html").read_text()
    assert not list(folder.glob("runs/*/*/checkpoints"))

    before = finished(folder)
    run_comparison(spec, ("seeds=[0, 1, 2]",), out=out)
    after = finished(folder)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name.split("-")[-1] for path in after.keys() - before.keys()} == {"seed2"}
    with pytest.raises(UserError, match="another comparison"):
        run_comparison(spec, ("training.warmup=0.3",), out=out)


def test_at_equal_time_an_arm_pays_for_its_data_stages(spec, out):
    """What the stages took stands in their manifests, and step times in timing.json: both are set here."""
    folder = out / "models"
    took = {"proxy": 2.0, "scored": 1.5}
    for path in folder.glob("artifacts/*/manifest.json"):
        manifest = json.loads(path.read_text())
        seconds = took.get(manifest["stage"], 0.0)
        path.write_text(json.dumps({**manifest, "seconds": seconds, "ledger": {}}))
    (folder / "timing.json").write_text(json.dumps({"bk": [1.0] * 5, "gru": [0.5] * 5}))
    run_comparison(spec, out=out)
    results = json.loads((folder / "results.json").read_text())
    data = {arm["name"]: arm["data_seconds"] for arm in results["arms"]}
    steps = {row["arm"]: row["steps"] for row in results["rows"] if row["kind"] == "seconds"}
    assert data["gru"] - data["bk"] == pytest.approx(3.5)
    assert steps == {"bk": 12, "gru": 17}  # (12 - 3.5) / 0.5


def test_a_finished_run_of_other_text_is_named_before_it_is_made_anew(spec, out, capsys):
    run = next((out / "models").glob("runs/bk/test-*-steps12-seed1"))
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**before, "key": "of other text", "nats": []}))
    run_comparison(spec, ("equal_seconds=false",), out=out)
    said = " ".join(capsys.readouterr().err.split())
    assert "finished runs are of other text or of another bkray: 1, the first" in said
    assert run.name in said
    assert json.loads((run / "result.json").read_text())["nats"] == before["nats"]


def test_a_run_that_diverged_is_a_row_and_not_the_end(spec, out):
    folder = out / "models"
    diverged = next(folder.glob("runs/gru/test-*-steps12-seed1/result.json"))
    key = json.loads(diverged.read_text())["key"]
    diverged.write_text(json.dumps({"key": key, "error": "training diverged at step 3"}))
    run_comparison(spec, ("equal_seconds=false",), out=out)
    rows = {row["arm"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    assert rows["gru"]["error"] == "training diverged at step 3"
    assert rows["bk"]["bits_per_byte"] > 0
    assert "training diverged at step 3" in (folder / "report.html").read_text()


def test_no_rate_that_works_is_an_error_that_names_the_arm(spec, tmp_path):
    with pytest.raises(UserError, match="arm bk: every learning rate"):
        run_comparison(spec, ("learning_rates=[1.0e29, 1.0e30]",), out=tmp_path / "out")


def test_a_single_rate_is_taken_untried_and_steps_are_timed_within_their_schedule(spec, tmp_path):
    arms = {
        "bk": {"model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 1}},
        "one-cycle": {
            "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 1},
            "training.schedule": "one_cycle",
        },
    }
    overrides = (
        f"arms={json.dumps(arms)}",
        "learning_rates=[1.0e-2]",
        "steps=[4]",
        "seeds=[0]",
        "equal_seconds=false",
    )
    folder = run_comparison(spec, overrides, out=tmp_path / "out")
    results = json.loads((folder / "results.json").read_text())
    assert [(arm["lr"], arm["tried"]) for arm in results["arms"]] == [(1e-2, {})] * 2
    assert all(arm["relative_time"] > 0 for arm in results["arms"])
    assert sorted(path.name for path in folder.glob("runs/*/*")) == ["test-lr0.01-steps4-seed0"] * 2


def test_arms_of_other_training_text_are_paired_by_seed(spec, texts, tmp_path):
    """Their tokenizers cut the same held-out text into other windows."""
    lines = (texts / "a.jsonl").read_text().splitlines(keepends=True)
    backwards = [json.dumps({"text": json.loads(line)["text"][::-1]}) + "\n" for line in lines[20:]]
    arms = {}
    for name, rows in (("plain", lines[20:]), ("reversed", backwards)):
        (folder := tmp_path / name).mkdir()
        for split, part in (("train", rows), ("validation", lines[:10]), ("test", lines[10:20])):
            (folder / f"{split}.jsonl").write_text("".join(part))
        arms[name] = {"corpus": {"kind": "jsonl", "path": str(folder)}}
    overrides = (
        f"arms={json.dumps(arms)}",
        "reference=plain",
        "model={kind: resnet_bk, d_model: 16, n_layers: 1}",
        "learning_rates=[1.0e-2]",
        "steps=[4]",
        "equal_seconds=false",
    )

    def compared_rows(*more):
        folder = run_comparison(spec, (*overrides, *more), out=tmp_path / "out")
        return {row["arm"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}

    one = compared_rows("seeds=[0]")
    assert one["reversed"]["bits_per_byte"] > 0
    assert one["reversed"]["difference"] is None  # of one seed nothing is known of the spread
    rows = compared_rows("seeds=[0,1,2]")
    by_seed = np.subtract(rows["reversed"]["by_seed"], rows["plain"]["by_seed"])
    # of 27 draws of three seeds one is the lowest three times: more than the 2.5 % below the interval
    expected = (by_seed.mean(), by_seed.min(), by_seed.max())
    assert rows["reversed"]["difference"] == pytest.approx(expected)
    assert by_seed.min() < by_seed.max()
