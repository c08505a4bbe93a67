import runpy
import signal
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
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


@pytest.fixture(scope="session")
def bkray_here():
    """Call the command line in this process, which spares its start; returns what a process would."""

    def call(*arguments, cwd=ROOT):
        before = signal.getsignal(signal.SIGTERM)
        output = redirect_stdout(StringIO()), redirect_stderr(StringIO())
        with output[0] as out, output[1] as err, chdir(cwd), pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        signal.signal(signal.SIGTERM, before)
        return CompletedProcess(arguments, ended.value.code or 0, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="module")
def two_cpus():
    """A local cluster that is there already when a command asks for one."""
    with cluster(cpus=2):
        yield


@pytest.fixture
def script(monkeypatch, capfd):
    """Run a script of `pipelines/` in this process; returns what it says on stderr."""

    def call(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_module(f"pipelines.{name}", run_name="__main__")
        return capfd.readouterr().err

    return call
