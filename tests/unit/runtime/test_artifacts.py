import logging
import shutil
import subprocess
import sys

import pytest

from bkray.runtime.artifacts import Artifact, write_manifest, writing


@pytest.fixture
def path(tmp_path):
    """A finished artifact with two files."""
    target = tmp_path / "stage-key"
    with writing(target) as directory:
        (directory / "part-00000.parquet").write_bytes(b"x" * 100)
        (directory / "part-00001.parquet").write_bytes(b"y" * 50)
        write_manifest(directory, {"key": "key", "rows": 3})
    return target


def test_a_finished_artifact_is_found_by_its_key(path):
    found = Artifact.find(path, "key")
    assert found.rows == 3
    assert [part.name for part in found.parts] == ["part-00000.parquet", "part-00001.parquet"]
    assert Artifact.find(path, "other") is None


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_damaged_artifact_is_named_and_counts_as_absent(path, caplog, damage):
    part = path / "part-00001.parquet"
    part.unlink() if damage == "removed" else part.write_bytes(b"y" * 20)
    with caplog.at_level(logging.WARNING):
        assert Artifact.find(path, "key") is None
    assert "stage-key is damaged (part-00001.parquet)" in caplog.text


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "stage-key") as directory:
        assert (directory / "part-00000.parquet").write_bytes(b"x") / 0
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from bkray.runtime.artifacts import write_manifest, writing

def written_with_a_kill_at(last, path):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    with writing(path) as directory:
        (directory / "leftover.parquet").write_bytes(b"z" * 10)
        (directory / "part-00000.parquet").write_bytes(b"x" * 100)
        write_manifest(directory, {"key": "key", "rows": 1})

for last, path in enumerate(map(Path, sys.argv[1:]), start=1):
    if not (process := os.fork()):
        written_with_a_kill_at(last, path)
        os._exit(0)
    if not os.WIFSIGNALED(os.waitpid(process, 0)[1]):
        break
"""


def test_a_kill_at_any_write_makes_no_artifact_and_hinders_none(path, tmp_path):
    """Also one between the manifest and the rename; a damaged artifact that lies in the way is taken away."""
    (path / "part-00001.parquet").write_bytes(b"y" * 20)
    copies = [shutil.copytree(path, tmp_path / f"{number:02d}" / path.name) for number in range(40)]
    command = [sys.executable, "-c", KILLED, *copies]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (whole,) = [number for number, copy in enumerate(copies) if Artifact.find(copy, "key")]
    assert 10 < whole < 39, "a kill at each write, and then one run without"
    last = copies[whole - 1].parent
    assert [file.name for file in last.iterdir()] == [".partial-stage-key"], "killed before the rename"
    assert (last / ".partial-stage-key" / "manifest.json").exists()
    for copy in copies[:whole]:
        with writing(copy) as directory:
            (directory / "part-00000.parquet").write_bytes(b"x" * 50)
            write_manifest(directory, {"key": "key", "rows": 2})
        assert Artifact.find(copy, "key").rows == 2
        assert {file.name for file in copy.iterdir()} == {"part-00000.parquet", "manifest.json"}
        assert list(copy.parent.iterdir()) == [copy]
