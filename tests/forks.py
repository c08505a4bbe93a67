"""Processes of the tests as forks of one that has done the slow imports: half of what a small run takes.

It is multiprocessing's fork server, which has no threads and does nothing else.
"""

import atexit
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from bkray.cli import main

_IMPORTS = [
    "bkray.runtime.comparison",
    "bkray.runtime.compression",
    "bkray.runtime.doctor",
    "bkray.runtime.overview",
    "bkray.runtime.submission",
    "bkray.runtime.sweep",
    "torch._dynamo",
]
_START = "forkserver"
_ONE_AT_A_TIME = threading.Lock()
"""Starting a process asks all others for their exit code, which one thread alone may read."""


def fork_server():
    """The start method for multiprocessing, whose server imports what the tests need when it starts."""
    multiprocessing.set_forkserver_preload(_IMPORTS)
    return _START


class Command:
    """A started `bkray`, its output in files: as much of `subprocess.Popen` as the tests use."""

    def __init__(self, arguments, cwd, stdout=os.devnull, stderr=os.devnull, env=None, before=None):
        """`before` is called in the process before the command is."""
        self.args = list(map(str, arguments))
        self._stderr = Path(stderr)
        given = (self.args, str(cwd), dict(env or os.environ), before, str(stdout), str(stderr))
        self._process = multiprocessing.get_context(fork_server()).Process(target=_become, args=given)
        with _ONE_AT_A_TIME:
            self._process.start()
        self.pid = self._process.pid
        atexit.register(self.kill)  # else multiprocessing would wait for what a failed test leaves

    def poll(self):
        with _ONE_AT_A_TIME:
            return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode

    def wait_for(self, condition, timeout=1800):
        """Wait until the condition holds, before which the process must not end."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.returncode is None, f"the run ended too early: {self._stderr.read_text()}"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)


def run(arguments, cwd, timeout=1800, env=None):
    """Like `subprocess.run` of `bkray` with its output captured as text."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("stdout", "stderr")]
        command = Command(arguments, cwd, *paths, env=env)
        try:
            code = command.wait(timeout)
        finally:
            command.kill()
        texts = [path.read_text() for path in paths]
    return CompletedProcess(command.args, code, *texts)


def _become(arguments, cwd, environment, before, *outputs):
    gc.freeze()  # else the first search for garbage would copy all that is shared
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(outputs, start=1):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["bkray", *arguments]
    if before:
        before()
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
