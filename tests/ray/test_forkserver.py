"""Workers of a local Ray are forks of one process that has done their imports."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=1)
class Worker:
    """A process of its own, which tells what it found at its start."""

    def __init__(self):
        self.imported = "torch" in sys.modules and "bkray.runtime.training" in sys.modules

    def state(self):
        import torch

        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "group": os.getpgid(0),
            "argv": sys.argv[0],
            "path": sys.path[0],
            "imported": self.imported,
            "threads": torch.get_num_threads(),
            "drawn": np.random.random(),
            "variable": os.environ.get("OF_THE_TASK"),
            "child": subprocess.run(["false"], check=False).returncode,  # needs the usual SIGCHLD
            "blocked": {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])},
            "directory": os.getcwd(),
            "collects garbage": gc.isenabled(),
        }


def states(*workers):
    return ray.get([worker.state.remote() for worker in workers])


def test_workers_are_forks_with_all_imported_and_with_chance_of_their_own(two_cpus):
    first, second = states(Worker.remote(), Worker.remote())
    assert first["parent"] == second["parent"]
    assert first["pid"] != second["pid"]
    for state in (first, second):
        assert state["group"] == state["pid"]
        assert state["imported"]
        assert state["collects garbage"]
        assert state["threads"] == 1
        assert state["child"] == 1
        assert state["argv"].endswith("default_worker.py")
        assert "forkserver" not in state["path"]
    assert first["drawn"] != second["drawn"]


def test_a_fork_is_what_ray_would_have_started(two_cpus):
    """With `-B` Ray's own file starts the worker; both find the same."""
    own = Worker.options(runtime_env={"py_executable": f"{sys.executable} -B"}).remote()
    forked, started = states(Worker.options(runtime_env={"env_vars": {"OF_THE_TASK": "1"}}).remote(), own)
    assert forked["parent"] != started["parent"]
    assert psutil.Process(started["parent"]).name() == "raylet"
    assert (forked["variable"], started["variable"]) == ("1", None)
    assert not started["imported"]
    for name in ("argv", "path", "child", "blocked", "directory"):
        assert forked[name] == started[name], name


def test_the_server_has_no_threads_that_a_fork_would_lose(two_cpus):
    (state,) = states(Worker.remote())
    names = {each.read_text().strip() for each in Path(f"/proc/{state['parent']}/task").glob("*/comm")}
    assert names <= {"python", "python3", "jemalloc_bg_thd"}  # jemalloc starts its own again in a fork


DIES = """
import os, psutil, ray
from bkray.runtime.cluster import cluster

@ray.remote(num_cpus=1, max_calls=1)  # a worker a call
def parent():
    return os.getppid()

with cluster(2):
    server = psutil.Process(ray.get(parent.remote()))
    assert server.name() != "raylet"
    server.kill()
    server.wait()
    *forked, started = [psutil.Process(ray.get(parent.remote())).name() for _ in range(3)]  # two may wait
    assert started == "raylet"
"""


def test_where_the_server_dies_ray_starts_the_workers():
    command = [sys.executable, "-c", DIES]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stderr
