"""The whole main job as a user submits it: a real head on loopback, `ray job submit`, exit codes."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bkray.runtime import cluster

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(kill_node):
    """A head node with ports and a temporary folder of its own: (environment, dashboard address)."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = {name: free_port() for name in names}
    environment = {**os.environ, "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment.pop("RAY_ADDRESS", None)
    environment |= cluster._LOCAL_RAY  # the usual priority, no workers and figures that nobody asks for
    environment["RAY_idle_worker_killing_time_threshold_ms"] = "600000"  # each takes seconds to start
    state = tempfile.mkdtemp(prefix="bkray")  # short: a socket's path must stay below 107 characters
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={state}"]
    command += [f"--{name}={number}" for name, number in ports.items()]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(ports["dashboard-port"])
        yield environment, f"http://127.0.0.1:{ports['dashboard-port']}"
    finally:
        kill_node(process)  # an orderly end takes half a minute
        process.wait(timeout=60)
        shutil.rmtree(state, ignore_errors=True)


def wait_for(port):
    """Until somebody listens there: every attempt to submit takes seconds."""
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "the head did not start"
        time.sleep(0.1)


def submit(head, *arguments):
    environment, address = head
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *map(str, arguments)]
    for _ in range(30):
        finished = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        if "Failed to connect" not in finished.stdout + finished.stderr:
            break
        time.sleep(2)
    return finished


QUICKSTART = "pipelines/recipes/quickstart.yaml"
SHORT = ("corpus.packages=[nltk]", "proxy.tokens=8000", "model={kind: resnet_bk, d_model: 64, n_layers: 2}")
SHORT += ("training.tokens=100000", "training.lr=1e-2")


def test_the_main_job_by_ray_job_submit(head, tmp_path):
    """The quickstart as it is, on one package, with a small model and for fewer steps."""
    out = tmp_path / "out"
    finished = submit(head, "python", "-m", "pipelines.end_to_end", QUICKSTART, *SHORT, "--out", out)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    summary = json.loads((out / "quickstart" / "summary.json").read_text())
    assert summary["held_out"]["bits_per_byte"] < summary["baselines"]["unigram"]
    assert summary["world_size"] == 2
    assert (out / "quickstart" / "report.html").exists()
    assert "bits per byte" in finished.stdout
    wrong = submit(head, "python", "-m", "pipelines.end_to_end", QUICKSTART, "training.lrr=1", "--out", out)
    assert wrong.returncode != 0
    assert "did you mean lr?" in wrong.stdout + wrong.stderr
