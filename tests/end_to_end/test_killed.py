"""Every stage that prepares data is killed in the middle; the same command goes on to the same bytes."""

import json
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from bkray.runtime import pipeline
from tests.forks import Command

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]
KILLED = ["decontaminated", "deduplicated", "filtered", "nearest", "augmented", "windows", "selected"]


@pytest.fixture
def small(small, tmp_path):
    """The small recipe with every filter, on text of which each takes some out."""
    rng = np.random.default_rng(0)
    train, sample, target = ([prose(rng) for _ in range(count)] for count in (200, 150, 60))
    near = [f"{text} other" for text in train[:20]]
    shuffled = [" ".join(rng.permutation(prose(rng).split())) for _ in range(20)]
    files = {"pool/a": train + near, "pool/b": shuffled + target, "sample": sample, "target": target}
    (tmp_path / "pool").mkdir()
    for name, texts in files.items():
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    pool, trusted, wanted = (
        {"kind": "jsonl", "path": str(tmp_path / path)} for path in ("pool", "sample.jsonl", "target.jsonl")
    )
    recipe = yaml.safe_load(small.read_text()) | {
        "corpus": pool,
        "cleaning": {
            "leakage": {"held_out_of": {"target": wanted | {"test": 0.3}}},
            "near": {},
            "quality": {"sample": trusted},
            "nearest": {"to": wanted, "keep": 0.7},
        },
    }
    small.write_text(yaml.safe_dump(recipe))
    return small


def prose(rng):
    """Text in which each word has eight possible successors, so that its order can be learned."""
    place, chosen = int(rng.integers(len(WORDS))), []
    for _ in range(60):
        chosen.append(WORDS[place])
        place = (place * 7 + int(rng.integers(8))) % len(WORDS)
    return " ".join(chosen)


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
    bkray, small, tmp_path, kill_node
):
    """Killed when its first file is there: the driver alone and the whole node by turns."""
    usual, out = tmp_path / "usual", tmp_path / "out"
    assert bkray("prepare", small, "--out", usual, "--cpus", 2).returncode == 0
    for name in KILLED:
        (made,) = usual.glob(f"small/artifacts/{name}-*/manifest.json")
        assert json.loads(made.read_text())["removed"] > 0 or name in ("augmented", "windows")
    before = {}
    for turn, stage in enumerate(KILLED):
        command = ["prepare", small, "--out", out, "--cpus", 2 + turn % 2]
        process = Command(command, ROOT, before=partial(never_finish, stage))
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
    again = bkray("prepare", small, "--out", out, "--cpus", 2)
    assert again.returncode == 0, again.stderr
    assert artifacts(out).items() >= before.items()
    assert contents(out) == contents(usual)
    assert not list(out.rglob(".partial-*"))
