"""SIGTERM while a local Ray runs is taken like Ctrl-C, which Ray's own handler does not do."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

PROGRAM = """
import os, signal, time
from bkray.runtime.cluster import cluster
from bkray.runtime.exits import exit_codes
with exit_codes(), cluster(2):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_it_ends_as_interrupted():
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 130, ended.stderr
    assert "run the same command again to go on" in ended.stderr
