"""Active learning, for real: the rounds, the controls at equal cost, kills within and between rounds."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from bkray.config import UserError
from bkray.config.active import load_active
from bkray.corpus import list_shards
from bkray.corpus.windows import read_columns
from bkray.evaluation import paired_difference
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime.active import Runs, run_active
from bkray.runtime.rounds import LoopRunner
from tests.forks import Command

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def spec(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("active")
    base = {
        "name": "base",
        "corpus": {"kind": "jsonl", "path": str(texts), "validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "window": 48,
        "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1},
        "training": {
            **{"tokens": 30_000, "batch_tokens": 384, "workers": 1, "eval_windows": 16},
            **{"eval_every": 10, "log_every": 2, "checkpoint_every": 6},
        },
        "samples": None,
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    values = {
        **{"name": "loop", "recipe": "base.yaml", "selection": {"kind": "entropy", "keep": 0.5}},
        **{"start": 0.2, "pool": 0.3, "rounds": 2, "seeds": [0]},
    }
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def finished(spec, tmp_path_factory):
    """The folder of a whole loop with its controls, one seed."""
    return run_active(spec, out=tmp_path_factory.mktemp("out"))


def stage(folder, name):
    """The artifacts of a stage in the order in which they were made."""
    return sorted(folder.glob(f"artifacts/{name}-*"), key=lambda path: path.stat().st_mtime_ns)


def column(folder, name):
    return read_columns(sorted(folder.glob("part-*")), [name])[name].to_numpy()


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_each_round_adds_the_most_uncertain_of_a_pool_that_holds_nothing_taken(finished):
    every = column(stage(finished, "training_set")[0], "window_id")
    pools, scored, selected = (stage(finished, name) for name in ("pool", "scored", "selected"))
    assert len(pools) == len(scored) == len(selected) == 2
    taken = set()
    for number, (pool, scores, chosen) in enumerate(zip(pools, scored, selected, strict=True), start=1):
        ids, uncertainty = column(scores, "window_id"), column(scores, "uncertainty")
        assert len(ids) == round(0.3 * len(every))
        assert set(ids) == set(column(pool, "window_id"))
        assert not set(ids) & taken
        best = np.lexsort((ids, -uncertainty))[: round(0.5 * len(ids))]
        assert set(column(chosen, "window_id")) == set(ids[best])
        assert set(column(chosen, "window_id")) != set(ids[np.argsort(uncertainty)[: len(best)]])
        taken |= set(column(chosen, "window_id"))
        model = finished / "runs" / "entropy-seed0" / f"round-{number}"
        assert manifest(model)["inputs"]["selected"] == manifest(chosen)["key"]
    assert column(scored[0], "uncertainty").mean() > column(scored[1], "uncertainty").mean(), (
        "the model of the second round scores its pool, and has learnt"
    )


def test_the_controls_cost_what_the_loop_costs_and_every_round_is_in_the_ledger(finished):
    results = json.loads((finished / "results.json").read_text())
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert list(arms) == ["entropy", "random", "all"]
    loop = arms["entropy"]
    assert loop["selecting_flops"] > 0.05 * loop["flops"]
    assert loop["by_kind"]["scoring"]["flops"] == loop["selecting_flops"]
    assert sum(cost["flops"] for cost in loop["by_kind"].values()) == pytest.approx(loop["flops"])
    assert sum(cost["seconds"] for cost in loop["by_kind"].values()) == pytest.approx(loop["seconds"])
    for arm in arms.values():
        assert arm["flops"] == pytest.approx(loop["flops"], rel=0.03)
        assert sum(each["steps"] for each in arm["rounds"]) == arm["steps"]
        exported = finished / "runs" / f"{arm['name']}-seed0" / f"round-{len(arm['rounds']) - 1}"
        total = json.loads((exported / "config.json").read_text())["training"]["ledger"]
        spent = [each["training_flops"] for each in arm["rounds"]]
        assert sum(spent) == pytest.approx(sum(cost["flops"] for cost in total.values()))
        assert min(spent) > 0
    assert arms["random"]["steps"] == arms["all"]["steps"] > loop["steps"]
    sizes = [[each["windows"] for each in arms[name]["rounds"]] for name in ("entropy", "random")]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 3
    assert arms["random"]["selecting_flops"] == arms["all"]["selecting_flops"] == 0
    assert arms["all"]["unique_tokens"] > arms["random"]["unique_tokens"]
    assert not list(finished.glob("runs/*/checkpoints"))


def test_differences_are_paired_on_the_test_split(finished):
    results = json.loads((finished / "results.json").read_text())
    evaluations = stage(finished, "evaluation")  # in the order of the arms
    nats = {arm["name"]: column(path, "nats") for arm, path in zip(results["arms"], evaluations, strict=True)}
    bytes_W = column(evaluations[0], "target_bytes")
    for arm in results["arms"]:
        assert arm["by_seed"] == [pytest.approx(nats[arm["name"]].sum() / bytes_W.sum() / np.log(2))]
        if arm["name"] == "random":
            assert arm["difference"] is None
            continue
        expected = paired_difference(nats[arm["name"]][None], nats["random"][None], bytes_W)
        assert arm["difference"] == [expected.bits_per_byte, expected.low, expected.high]
    page = (finished / "report.html").read_text()
    assert "Pool of round 2" in page
    assert "Cost by round: random" in page


def test_the_controls_choose_other_windows_and_nothing_scores_for_them(finished):
    pool, random = finished / "runs/entropy-seed0/round-1", finished / "runs/random-seed0/round-1"
    assert "selected" in manifest(pool)["inputs"]
    assert "selected" not in manifest(random)["inputs"]
    weights = [path.read_bytes() for path in finished.glob("runs/*/round-*/model.safetensors")]
    assert len(set(weights)) == len(weights) == 3 + 3 + 1


def files(folder):
    """The bytes of everything that must not depend on how the loop went."""
    kept = [*folder.glob("artifacts/*/part-*.parquet"), *folder.glob("runs/*/round-*/model.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.fixture
def without_the_loop(finished, tmp_path):
    """A copy of the finished folder that has the data and the controls, but nothing of the loop itself."""
    folder = tmp_path / "out" / "loop"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "runs" / "entropy-seed0")
    (folder / "report.html").unlink()
    for name in ("pool", "scored", "selected"):
        for path in stage(folder, name):
            shutil.rmtree(path)
    shutil.rmtree(stage(folder, "evaluation")[0])
    return folder


def written(folder):
    """The files of all that is finished, and what changes where one is written anew."""
    found = [*folder.glob("artifacts/[!.]*/*"), *folder.glob("runs/*/round-*/*")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_killed_between_rounds_and_within_one_it_goes_on_and_ends_with_the_same_bytes(
    finished, without_the_loop, spec, kill_node
):
    """Every process of the loop is killed, twice: what is finished stays, and so does what was trained."""
    folder, loop = without_the_loop, without_the_loop / "runs" / "entropy-seed0"
    boundary = json.loads((finished / "results.json").read_text())["arms"][0]["rounds"][0]["steps"]

    def saved():
        return max((int(path.name[5:]) for path in loop.glob("checkpoints/step-*")), default=0)

    kill_when(lambda: any(folder.glob("artifacts/.partial-scored-*")), spec, folder.parent, kill_node)
    before, first = written(folder), RunLog.read(loop / "metrics.jsonl")
    assert (loop / "round-0" / "manifest.json") in before
    assert len(stage(folder, "pool")) == 1
    assert saved() == first[-1]["step"] == boundary
    kill_when(lambda: saved() > boundary, spec, folder.parent, kill_node)
    assert not (loop / "round-2").exists()
    there = written(folder)
    assert there.items() >= before.items(), "what was finished is made again"
    assert stage(folder, "selected")
    log, reached = RunLog.read(loop / "metrics.jsonl"), saved()
    kept = [line for line in log if line["step"] <= reached]
    assert kept[: len(first)] == first, "round 0 is trained again"
    assert len(kept) > len(first), "so that the log, which holds seconds, tells whether the round begins anew"
    run_active(spec, out=folder.parent)
    assert written(folder).items() >= there.items(), "what was finished is made again"
    whole = RunLog.read(loop / "metrics.jsonl")
    assert whole[: len(kept)] == kept, "the round begins anew"
    ledgers = [manifest(loop / f"round-{number}")["ledger"] for number in range(3)]
    step_tokens = first[-1]["tokens"] // boundary
    lost = sum(ledger.get("lost", {"tokens": 0})["tokens"] for ledger in ledgers)
    assert lost == log[-1]["tokens"] - reached * step_tokens, "steps after the checkpoint and no others"
    assert files(folder) == files(finished)
    before, after = (json.loads((path / "results.json").read_text())["arms"] for path in (finished, folder))
    for one, other in zip(before, after, strict=True):
        assert one["by_seed"] == other["by_seed"]
        assert one["steps"] == other["steps"]
    assert not list(folder.rglob(".partial-*"))


def test_two_workers_make_the_same_of_a_round_whose_checkpoint_is_lost(finished, spec, tmp_path):
    """It went with the end of the run, so they train from the first step on."""
    folder = tmp_path / "loop"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "runs" / "entropy-seed0" / "round-2")
    active, recipe = load_active(spec, ("training.workers=2",))
    runs = Runs(active, recipe, folder, list_shards(recipe.corpus))
    run = runs.run("entropy", active.selection, recipe.steps, 0, runs.prepare(4, Progress()))
    rounds = LoopRunner(run, 4, Progress()).rounds()
    one, two = (
        load_file(path / "runs/entropy-seed0/round-2/model.safetensors") for path in (finished, folder)
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(two[name], tensor) for name, tensor in one.items())  # another order of sums
    assert rounds[1].model.manifest == manifest(finished / "runs/entropy-seed0/round-1")
    assert rounds[2].model.manifest["ledger"]["optimizer"]["flops"] > 0


def kill_when(condition, spec, out, kill_node):
    """Start the loop on the command line, and kill all of its processes when the condition holds."""
    log = out / "stderr.txt"
    process = Command(["active", spec, "--out", out, "--cpus", 2], ROOT, stderr=log)
    started = time.monotonic()
    while not condition():
        assert process.poll() is None, f"it ended before: {log.read_text()}"
        assert time.monotonic() - started < 1800
        time.sleep(0.01)
    kill_node(process)
    process.wait(timeout=60)


def test_repeated_it_changes_nothing_and_another_loop_is_refused(finished, spec):
    made = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    command = [sys.executable, "-m", "pipelines.active_loop", str(spec), "--out", str(finished.parent)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert again.returncode == 0, again.stderr
    assert "already complete, nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == made
    with pytest.raises(UserError, match="holds another loop of this name"):
        run_active(spec, ("selection.keep=0.4",), out=finished.parent)


def test_rounds_without_a_step_are_refused(spec, tmp_path):
    with pytest.raises(UserError, match=r"too few for rounds 2 to begin at steps \[0, 0, 1\]"):
        run_active(spec, ("start=0.01", "pool=0.1", "training.tokens=1100"), out=tmp_path)
