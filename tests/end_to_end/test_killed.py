"""A run is killed in the middle of one stage after the other; the same command goes on to the same bytes."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import ray

from bkray.runtime import pipeline
from tests.forks import Command

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray, pytest.mark.long]

ROOT = Path(__file__).parents[2]
KILLED = {
    "decontaminated": "driver",
    "deduplicated": "job",
    "filtered": "node",
    "nearest": "job",
    "tokenizer": "job",
    "augmented": "driver",
    "windows": "job",
    "proxy": "job",
    "selected": "node",
    "training_set": "job",
    "held_out_scores": "job",
}
"""What is killed: the driver, the whole node, or the driver of a job, which leaves its cluster behind.

The other stages are disturbed in test_run.py.
"""
LITTLE = ["training.workers=1", "training.tokens=4000", "samples=null"]


def never_finish(stage):
    """Let this process stand still before the stage's folder becomes an artifact."""
    write_manifest = pipeline.write_manifest

    def instead(directory, manifest):
        if directory.name.startswith(f".partial-{stage}-"):
            time.sleep(600)
        write_manifest(directory, manifest)

    pipeline.write_manifest = instead


def artifacts(out):
    """Every file of a finished artifact and when it was written."""
    found = [*out.glob("small/artifacts/[!.]*/*"), *out.glob("small/model/*")]
    return {path: path.stat().st_mtime_ns for path in found}


def contents(out):
    """The bytes of every artifact, by path, without the files that hold times."""
    paths = [path for path in artifacts(out) if path.name not in {"manifest.json", "config.json"}]
    return {path.relative_to(out): path.read_bytes() for path in paths}


def test_a_stage_killed_in_the_middle_is_made_again_and_what_is_finished_stays(
    bkray_here, two_cpus, filtering, tmp_path, kill_node
):
    """Killed when its first file is there."""
    usual, out = tmp_path / "usual", tmp_path / "out"
    assert bkray_here("run", filtering, *LITTLE, "--out", usual).returncode == 0
    job = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    before = {}
    for stage, how in KILLED.items():
        command = ["run", filtering, *LITTLE, "--out", out, "--cpus", 3 if how == "node" else 2]
        log, env = tmp_path / f"{stage}.txt", job if how == "job" else None
        process = Command(command, ROOT, stderr=log, env=env, before=partial(never_finish, stage))
        process.wait_for(lambda begun=f"small/artifacts/.partial-{stage}-*/*": any(out.glob(begun)))
        if how == "node":
            kill_node(process)
        else:
            process.kill()
        assert process.wait(60) == -signal.SIGKILL
        assert not list(out.glob(f"small/artifacts/{stage}-*"))
        there = artifacts(out)
        assert there.items() >= before.items(), "what was finished is made again"
        before = there
    again = bkray_here("run", filtering, *LITTLE, "--out", out)
    assert again.returncode == 0, again.stderr
    assert artifacts(out).items() >= before.items()
    assert contents(out) == contents(usual)
    assert not list(out.rglob(".partial-*"))
