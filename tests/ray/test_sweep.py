"""bkray sweep, for real: weak trials are stopped, one that diverges is a row, one interrupted runs again."""

import json
from pathlib import Path

import pytest
import yaml

from bkray.config import UserError, load_recipe
from bkray.runtime.pipeline import run_pipeline
from bkray.runtime.sweep import run_sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]


@pytest.fixture
def spec(tmp_path, texts):
    base = {
        "name": "base",
        "corpus": {"kind": "jsonl", "path": str(texts), "validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "window": 48,
        "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1},
        "training": {"tokens": 384 * 12, "batch_tokens": 384, "eval_every": 5, "optimizer": "adamw"},
        "samples": None,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    rates = {"training.lr": {"kind": "choice", "values": [1e-2, 1e30]}}
    values = {"name": "rates", "recipe": "base.yaml", "space": rates, "trials": 2, "grace_steps": 12}
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_one_that_its_data_refuse_can_be_mended(spec, tmp_path):
    out, wide = tmp_path / "out", ("window=4096", "training.batch_tokens=8192", "training.tokens=81920")
    with pytest.raises(UserError, match="too small for one window of 4096 tokens"):
        run_sweep(spec, wide, out=out)
    (folder,) = out.iterdir()
    assert not [path.name for path in folder.iterdir() if path.name not in {".lock", "artifacts"}]
    run_sweep(spec, ("trials=1", "training.tokens=1920", "seed=1", "training.lr=0.01"), out=out)
    with pytest.raises(UserError, match="holds a sweep, not a run"):
        run_pipeline(load_recipe(tmp_path / "base.yaml", ["name=rates"]), out)


def test_asha_stops_the_weak_trials_and_never_the_baseline(spec, tmp_path):
    """The first trial learns; the others, whose rate is next to nothing, begin when it has reported."""
    changes = (
        "training.tokens=11520",
        "training.lr=1e-9",
        "space={training.lr: {kind: choice, values: [1.0e-9, 2.0e-9, 3.0e-9, 0.01]}}",
        "baseline={training.lr: 1.0e-9}",
    )
    folder = run_sweep(spec, (*changes, "trials=4", "grace_steps=5", "seed=0"), out=tmp_path / "out")
    baseline, first, *others = json.loads((folder / "trials.json").read_text())
    assert (baseline["status"], first["status"]) == ("finished", "finished")
    assert first["parameters"]["training.lr"] == 1e-2
    assert [row["status"] for row in others] == ["stopped early"] * 3
    assert all(row["flops"] < baseline["flops"] for row in others)
    assert [len(list(folder.glob(f"artifacts/{stage}-*"))) for stage in ("documents", "training_set")] == [
        1,
        1,
    ]


def test_a_trial_that_diverges_is_a_row_and_one_that_was_interrupted_is_run_again(spec, tmp_path, capfd):
    def rows():
        return {
            row["parameters"]["training.lr"]: row for row in json.loads((folder / "trials.json").read_text())
        }

    folder = run_sweep(spec, out=tmp_path / "out")
    first = rows()
    assert (first[1e-2]["status"], first[1e30]["status"]) == ("finished", "failed")
    assert first[1e30]["error"].startswith("training diverged at step 1: ")
    assert Path(first[1e30]["error"].split()[-1]).exists(), "the batch"
    assert "Traceback" not in capfd.readouterr().err
    assert "What failed" in (folder / "report.html").read_text()
    assert yaml.safe_load((folder / "winner.yaml").read_text())["training"]["lr"] == 1e-2

    results = {rate: folder / "trials" / row["name"] / "result.json" for rate, row in first.items()}
    written = {rate: path.stat().st_mtime_ns for rate, path in results.items()}
    run_sweep(spec, out=tmp_path / "out")
    (folder / "trials.json").unlink()  # the last that a sweep writes
    results[1e-2].unlink()
    run_sweep(spec, out=tmp_path / "out")
    assert results[1e30].stat().st_mtime_ns == written[1e30]
    assert results[1e-2].stat().st_mtime_ns > written[1e-2]
    again = rows()
    assert again[1e30] == first[1e30]
    assert again[1e-2]["bits_per_byte"] == first[1e-2]["bits_per_byte"]
    assert again[1e-2]["flops"] == 2 * first[1e-2]["flops"], "its lost steps are charged"
