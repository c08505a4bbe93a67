"""How a process ends whose local Ray is disturbed."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.ray

TERMINATED = """
import os, signal, time
import ray
from bkray.runtime.cluster import cluster
from bkray.runtime.exits import exit_codes
with exit_codes(), cluster(2):
    print(ray.get(ray.remote(lambda: os.getppid()).remote()), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""

LOST = """
import time
import ray
from ray._private import worker
from bkray.runtime.cluster import cluster
from bkray.runtime.exits import exit_codes
with exit_codes(), cluster(2):
    worker._global_node.all_processes["raylet"][0].process.kill()
    ray.get(ray.remote(lambda: time.sleep(3600)).remote())
"""

TOO_SLOW = """
import os, signal, threading, time
from pathlib import Path
from types import SimpleNamespace
os.environ["RAY_raylet_start_wait_time_s"] = "3"
from ray._private import node
from bkray.runtime.cluster import cluster
from bkray.runtime.exits import exit_codes

def children():
    for file in Path("/proc/self/task").glob("*/children"):
        yield from file.read_text().split()

def stop_the_node():
    while not (nodes := [p for p in children() if Path(f"/proc/{p}/comm").read_text() == "raylet\\n"]):
        time.sleep(0.01)
    os.kill(int(nodes[0]), signal.SIGSTOP)
    print(nodes[0], flush=True)

node.time = SimpleNamespace(**{**vars(time), "monotonic": lambda: 10 * time.monotonic()})  # not 30 s
threading.Thread(target=stop_the_node, daemon=True).start()
with exit_codes(), cluster(2):
    print("started")
"""


def test_a_local_node_starts_only_what_it_needs(two_cpus):
    lines = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            lines.append(" ".join(process.cmdline()))
    assert any("/raylet " in line for line in lines)
    for unneeded in ("dashboard.py", "monitor.py", "log_monitor.py"):
        assert not [line for line in lines if unneeded in line]


def ended(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)


def test_sigterm_is_taken_like_an_interrupt_and_the_fork_server_of_the_workers_ends_too():
    """Ray's own handler would abort."""
    process = ended(TERMINATED)
    assert process.returncode == 130, process.stderr
    assert "run the same command again to go on" in process.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(process.stdout)).wait(timeout=30)


def test_a_lost_node_ends_it_with_one_message():
    process = ended(LOST)
    assert process.returncode == 2, process.stderr
    assert "Ray's raylet was killed by SIGKILL: what is finished is kept" in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_node_that_does_not_start_in_time_is_no_fault_of_the_program():
    process = ended(TOO_SLOW)
    node = int(process.stdout)  # alone: nothing has started
    with contextlib.suppress(ProcessLookupError):
        os.kill(node, signal.SIGKILL)
    assert process.returncode == 2, process.stderr
    assert "run the same command again" in process.stderr
    assert "Traceback" not in process.stderr
