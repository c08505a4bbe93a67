"""The fork server's parts, without a cluster."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from bkray.runtime.forkserver import START_WORKER, start_worker


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "raylet-01000000")


@pytest.fixture
def listener(address):
    with start_worker._listen(address) as server:
        server.settimeout(0.01)
        yield server


def test_one_of_several_becomes_the_server(listener, address):
    assert start_worker._listen(address) is None
    assert os.listdir(os.path.dirname(address)) == [os.path.basename(address)]


def test_it_ends_its_forks_and_itself_where_its_raylet_has_ended(listener, monkeypatch):
    ended = []
    monkeypatch.setattr(start_worker, "_end_forks", lambda: ended.append(True))  # here: those of the tests
    with pytest.raises(SystemExit):
        start_worker._next(listener, raylet=os.getppid() + 1)
    assert ended


def test_a_request_that_breaks_off_is_passed_over(listener, address):
    request = [["default_worker.py"], {"NAME": "value"}]
    with socket.socket(socket.AF_UNIX) as cut:
        cut.connect(address)
        cut.sendall(json.dumps(request).encode()[:-5])
    asking = threading.Thread(target=start_worker._ask, args=(address, request))
    asking.start()
    assert start_worker._next(listener, os.getppid()) == request
    asking.join()


def test_whoever_asks_a_server_that_is_gone_is_told(address):
    start_worker._listen(address).close()
    with pytest.raises(ConnectionRefusedError):
        start_worker._ask(address, ([], {}))


def test_only_plain_python_workers_are_forked():
    def parsed(language="PYTHON", **context):
        given = [f"--serialized-runtime-env-context={json.dumps(context)}", f"--language={language}"]
        return start_worker._parse(["default_worker.py", "--node-id=1", *given])

    plain = {"command_prefix": [], "py_executable": sys.executable, "java_jars": [], "env_vars": {"A": "b"}}
    assert parsed(**plain) == (["default_worker.py", "--node-id=1"], {"A": "b"})
    assert parsed() == (["default_worker.py", "--node-id=1"], {})
    for other in ({"py_executable": "other"}, {"command_prefix": ["nice"]}, {"language": "JAVA"}):
        assert parsed(**{**plain, **other})[1] is None


def test_ray_does_not_leave_the_file_out():
    """A file of the name of Ray's own is left out for workers without a runtime environment."""
    assert START_WORKER.is_file()
    assert START_WORKER.name != "setup_worker.py"


OUTLIVED = """
import os, signal, time
from bkray.runtime.forkserver import start_worker

start_worker._END_S, start_worker._LOOK_S = 1.0, 0.05
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if not os.fork():
    time.sleep(600)
    os._exit(0)
print(*start_worker._children(), flush=True)
start_worker._end_forks()
"""


def test_forks_that_do_not_end_after_the_raylet_are_ended():
    """Some of Ray's processes lock themselves up in their own end."""
    command = [sys.executable, "-c", OUTLIVED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        (fork,) = process.stdout.readline().split()
    assert process.returncode == 0
    started = time.monotonic()
    while runs(int(fork)) and time.monotonic() - started < 60:
        time.sleep(0.05)
    still = runs(int(fork))
    if still:
        os.kill(int(fork), signal.SIGKILL)
    assert not still


def test_a_server_whose_raylet_ended_before_it_ends(tmp_path):
    """As where a node is killed just when its first worker starts."""
    raylet = subprocess.Popen(["true"])
    raylet.wait()
    worker = tmp_path / "worker.py"
    worker.write_text("")
    command = [sys.executable, str(START_WORKER), str(worker), f"--raylet-name={tmp_path / 'raylet'}"]
    environment = {**os.environ, "RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": str(raylet.pid)}
    with subprocess.Popen(command, env=environment) as server:
        try:
            assert server.wait(timeout=120) == 0
        finally:
            server.kill()


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
