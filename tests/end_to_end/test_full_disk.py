"""The disk fills up in the middle of training: the run says so and ends, and goes on when there is room."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray, pytest.mark.long]

OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]
"""What is started so may mount, for itself and its children alone."""
SCRIPT = """
mount -t tmpfs -o size=512m none "$OUT" || exit
"$@" 2> "$SAID/full" &
until ls "$OUT"/*/checkpoints/step-* || ! kill -0 $!; do sleep 0.05; done
while kill -0 $!; do cat /dev/zero >> "$OUT/filler"; sleep 0.05; done
wait $!
echo $? > "$SAID/code"
rm "$OUT/filler"
cp -r "$OUT"/*/checkpoints "$OUT"/*/metrics.jsonl "$SAID"
"$@" 2> "$SAID/again"
status=$?
cp -r "$OUT"/*/metrics.jsonl "$SAID/end.jsonl"
exit $status
"""


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_full_disk_ends_training_and_leaves_its_checkpoints(tmp_path, small):
    if subprocess.run([*OWN_MOUNTS, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk of its own")
    out, said = tmp_path / "out", tmp_path / "said"
    out.mkdir()
    said.mkdir()
    bkray = Path(sys.executable).with_name("bkray")
    options = ["training.workers=1", "training.tokens=200000", "samples=null", "--out", out]
    ended = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", SCRIPT, "sh", bkray, "run", small, *options],
        env=os.environ | {"OUT": str(out), "SAID": str(said)},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert (said / "code").read_text() == "2\n", (said / "full").read_text()
    complaint = (said / "full").read_text()
    assert "No space left on device" in complaint
    assert "free some space and run the same command again" in complaint
    kept = sorted((said / "checkpoints").glob("step-*"))
    assert kept
    for checkpoint in kept:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        assert hashlib.sha256((checkpoint / "state.pt").read_bytes()).hexdigest() == manifest["sha256"]
    assert ended.returncode == 0, (said / "again").read_text()
    end = steps(said / "end.jsonl")
    assert end == sorted(set(end))
    assert end[-1] == math.ceil(200_000 / 384)
    assert steps(said / "metrics.jsonl")[0] == end[0]
