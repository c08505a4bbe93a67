"""A real sweep: Ray Tune with ASHA over shared artifacts, from the command line to a winner that runs."""

import json

import pytest
import yaml

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]


def test_a_sweep_leaves_a_table_a_picture_and_a_winner(bkray, small, tmp_path):
    spec = tmp_path / "sweep.yaml"
    values = {
        "name": "tiny",
        "recipe": "small.yaml",
        "overrides": ["augmentation=[]", "training.tokens=8000"],
        "space": {
            "curriculum.start": {"kind": "uniform", "low": 0.2, "high": 0.6},
            "selection.keep": {"kind": "choice", "values": [0.5, 0.8]},
        },
        "trials": 2,
        "baseline": {"difficulty": None, "proxy": None, "selection": None, "curriculum": None},
        "grace_steps": 10,
    }
    spec.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    finished = bkray("sweep", spec, "--out", out, "--cpus", 2)
    assert finished.returncode == 0, finished.stderr
    trials = json.loads((out / "tiny" / "trials.json").read_text())
    assert [trial["name"] for trial in trials] == ["baseline", "trial-01", "trial-02"]
    assert trials[0]["status"] == "finished"
    assert all(trial["bits_per_byte"] > 0 and trial["flops"] > 0 for trial in trials)
    assert trials[1]["flops"] > trials[0]["flops"] or trials[1]["status"] == "stopped early"
    best = min((t for t in trials if t["status"] == "finished"), key=lambda t: t["bits_per_byte"])
    assert f"{best['name']} (best)" in finished.stderr
    assert "<svg" in (out / "tiny" / "report.html").read_text()

    again = bkray("sweep", spec, "--out", out, "--cpus", 2)
    assert "already complete" in again.stderr
    plan = bkray("plan", out / "tiny" / "winner.yaml", "--out", out)
    assert plan.returncode == 0, plan.stderr
    winner = yaml.safe_load((out / "tiny" / "winner.yaml").read_text())
    assert winner["name"] == "tiny-winner"
    if not best["baseline"]:
        assert winner["selection"]["keep"] == best["parameters"]["selection.keep"]


def test_a_key_that_the_recipe_lacks_is_refused(bkray, small, tmp_path):
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
