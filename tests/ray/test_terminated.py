"""What ends a run while a local Ray is at work, and is not the run's own doing."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

PROGRAM = """
import os, signal, time
import ray
from ray._private import worker
from bkray.runtime.cluster import cluster
from bkray.runtime.exits import exit_codes
with exit_codes(), cluster(2):
    {what}
    ray.get(ray.remote(lambda: time.sleep(3600)).remote())
"""


def ended(what):
    command = [sys.executable, "-c", PROGRAM.format(what=what)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)


def test_sigterm_is_taken_like_ctrl_c_which_ray_s_own_handler_does_not_do():
    process = ended("os.kill(os.getpid(), signal.SIGTERM)")
    assert process.returncode == 130, process.stderr
    assert "run the same command again to go on" in process.stderr


def test_a_lost_node_ends_it_with_one_message():
    process = ended("worker._global_node.all_processes['raylet'][0].process.kill()")
    assert process.returncode == 2, process.stderr
    assert "Ray's raylet was killed by SIGKILL: what is finished is kept" in process.stderr
    assert process.stderr.count("\n") == 1
