"""Whose folder a sweep's is."""

import json
from pathlib import Path

import pytest

from bkray.config import UserError
from bkray.config.sweep import load_sweep
from bkray.runtime.sweep import _candidates, _complete, _identity, run_sweep

QUICKSTART = Path(__file__).parents[3] / "tune" / "sweeps" / "quickstart.yaml"


def test_an_interrupted_sweep_is_not_gone_on_with_as_another(tmp_path):
    """Its finished trials would be taken for those of the new points."""
    folder = tmp_path / "quickstart-sweep"
    folder.mkdir()
    (folder / "sweep.json").write_text(_identity(*load_sweep(QUICKSTART)))
    with pytest.raises(UserError, match="holds another sweep of this name"):
        run_sweep(QUICKSTART, ("seed=7",), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["sweep.json"]


def test_too_few_cpus_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("bkray.runtime.cluster.local_cpus", lambda cpus: 0)
    with pytest.raises(UserError, match="x 1 CPU = 1 CPUs, but there are 0"):
        run_sweep(QUICKSTART, ("corpus.packages=[nltk]",), tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_is_complete_with_trials_that_were_stopped_and_not_with_those_of_other_text(tmp_path):
    """A trial that was stopped early leaves a row and no result."""
    candidates = _candidates(*load_sweep(QUICKSTART), tmp_path)
    assert not _complete(tmp_path, candidates)
    rows = [{"name": one.name, "key": one.key, "status": "stopped early"} for one in candidates]
    (tmp_path / "trials.json").write_text(json.dumps(rows))
    assert not _complete(tmp_path, candidates)
    (tmp_path / "winner.yaml").write_text("name: winner")
    assert _complete(tmp_path, candidates)
    rows[-1]["key"] = "of other text"
    (tmp_path / "trials.json").write_text(json.dumps(rows))
    assert not _complete(tmp_path, candidates)


def test_a_trial_that_failed_is_tried_again_unless_it_diverged(tmp_path):
    candidates = _candidates(*load_sweep(QUICKSTART), tmp_path)
    *others, failed = candidates
    rows = [{"name": one.name, "key": one.key, "status": "finished"} for one in others]
    rows.append({"name": failed.name, "key": failed.key, "status": "failed"})
    (tmp_path / "trials.json").write_text(json.dumps(rows))
    (tmp_path / "winner.yaml").write_text("name: winner")
    assert not _complete(tmp_path, candidates)
    folder = tmp_path / "trials" / failed.name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"key": failed.key, "error": "the loss is not finite"}))
    assert _complete(tmp_path, candidates)
