"""A run is killed in the middle of stages that prepare data; the same command goes on to the same bytes."""

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from bkray.runtime import pipeline
from tests.forks import Command

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray, pytest.mark.long]

ROOT = Path(__file__).parents[2]
KILLED = ["decontaminated", "filtered", "augmented", "selected"]


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
    return {path: path.stat().st_mtime_ns for path in out.glob("small/artifacts/[!.]*/*")}


def contents(out):
    """The bytes of every artifact, by path; manifests hold times and are left out."""
    paths = [path for path in artifacts(out) if path.name != "manifest.json"]
    return {path.relative_to(out): path.read_bytes() for path in paths}


def test_a_stage_killed_in_the_middle_is_made_again_and_what_is_finished_stays(
    bkray, filtering, tmp_path, kill_node
):
    """Killed when its first file is there: the driver alone and the whole node by turns."""
    usual, out = tmp_path / "usual", tmp_path / "out"
    assert bkray("prepare", filtering, "--out", usual, "--cpus", 2).returncode == 0
    before = {}
    for turn, stage in enumerate(KILLED):
        command = ["prepare", filtering, "--out", out, "--cpus", 2 + turn % 2]
        log = tmp_path / f"{stage}.txt"
        process = Command(command, ROOT, stderr=log, before=partial(never_finish, stage))
        process.wait_for(lambda begun=f"small/artifacts/.partial-{stage}-*/*": any(out.glob(begun)))
        if turn % 2:
            kill_node(process)
        else:
            process.kill()
        assert process.wait(60) == -signal.SIGKILL
        assert not list(out.glob(f"small/artifacts/{stage}-*"))
        there = artifacts(out)
        assert there.items() >= before.items(), "what was finished is made again"
        before = there
    again = bkray("prepare", filtering, "--out", out, "--cpus", 2)
    assert again.returncode == 0, again.stderr
    assert artifacts(out).items() >= before.items()
    assert contents(out) == contents(usual)
    assert not list(out.rglob(".partial-*"))
