import signal
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bkray.cli import app
from bkray.runtime.cluster import cluster
from tests.forks import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bkray():
    """Call the command line; returns the finished process."""
    return lambda *arguments: run(arguments, ROOT)


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
