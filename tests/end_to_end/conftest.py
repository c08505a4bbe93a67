import signal
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bkray.cli import app
from bkray.runtime.cluster import cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bkray():
    """Call the command line; returns the finished process."""

    def call(*arguments, **options):
        command = [sys.executable, "-m", "bkray.cli", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False, **options
        )

    return call


@pytest.fixture
def bkray_here(capfd):
    """Call the command line in this process, which spares its start; returns what a process would."""

    def call(*arguments):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        signal.signal(signal.SIGTERM, before)
        return CompletedProcess(arguments, ended.value.code or 0, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def two_cpus():
    """A local cluster that is there already when a command asks for one."""
    with cluster(cpus=2):
        yield
