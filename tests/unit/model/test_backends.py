"""The choice of backend, and the work that the kernels share."""

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from bkray.config import UserError
from bkray.model import backends
from bkray.model.backends import choose_backend


@pytest.fixture
def forgotten(monkeypatch):
    """No choice has been announced, and none of this test stays so."""
    backends._announce.cache_clear()
    yield monkeypatch
    backends._announce.cache_clear()


def test_auto_takes_the_compiled_kernels_only_where_they_can_run():
    assert choose_backend("auto", torch.zeros(1)) == "numba"
    assert choose_backend("auto", torch.zeros(1, dtype=torch.float64)) == "numba"
    assert choose_backend("auto", torch.zeros(1, dtype=torch.bfloat16)) == "chunked"
    assert choose_backend("auto", torch.zeros(1, device="meta")) == "chunked"
    assert choose_backend("reference", torch.zeros(1)) == "reference"


@pytest.mark.parametrize("installed", [True, False])
def test_auto_on_a_gpu_takes_triton_where_it_is_installed(forgotten, installed):
    forgotten.setitem(backends.INSTALLED, "triton", installed)
    forgotten.setattr(backends, "INTERPRETED", False)
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert choose_backend("auto", on_a_gpu) == ("triton" if installed else "chunked")


def test_auto_says_once_what_it_chose(caplog, forgotten):
    with caplog.at_level(logging.INFO, logger="bkray.model"):
        for _ in range(3):
            choose_backend("auto", torch.zeros(1))
        forgotten.setitem(backends.INSTALLED, "numba", False)
        choose_backend("auto", torch.zeros(1))
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "backend auto on cpu torch.float32: numba"
    assert second.startswith("backend auto on cpu torch.float32: chunked (numba: the package numba is not")


def test_unusable_backends_are_refused_with_what_would_mend_it(forgotten):
    with pytest.raises(UserError, match="'cuda' is unknown: choose auto, reference, chunked, numba, triton"):
        choose_backend("cuda", torch.zeros(1))
    with pytest.raises(UserError, match=r"'numba' is not available: .*bfloat16 on cpu.*choose auto"):
        choose_backend("numba", torch.zeros(1, dtype=torch.bfloat16))
    forgotten.setitem(backends.INSTALLED, "triton", True)
    with pytest.raises(UserError, match=r"'triton' is not available: .* on cuda, not .* on cpu"):
        choose_backend("triton", torch.zeros(1))
    for name in ("numba", "triton"):
        forgotten.setitem(backends.INSTALLED, name, False)
        with pytest.raises(UserError, match=f"package {name} is not installed .pip install {name}"):
            choose_backend(name, torch.zeros(1))
    assert choose_backend("auto", torch.zeros(1)) == "chunked"


@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_every_item_is_run_once(items):
    done = torch.zeros(items, 1, 3)

    def kernel(first, last, chunk, array, flag):
        assert flag is True
        array[first:last] += 1

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        backends.run_kernel(kernel, done, True)
    finally:
        torch.set_num_threads(threads)
    assert (done == 1).all()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_kernel_runs_on_as_many_threads_as_torch(two_threads):
    seen, both = {}, threading.Barrier(2, timeout=60)

    def kernel(first, last, chunk, array):
        seen[first, last] = threading.get_ident()
        both.wait()

    backends.run_kernel(kernel, torch.zeros(4, 1, 3))
    assert set(seen) == {(0, 2), (2, 4)}
    assert len(set(seen.values())) == 2


@pytest.mark.parametrize("failing", [0, 2])
def test_what_a_kernel_fails_with_is_raised_whatever_its_thread(two_threads, failing):
    def kernel(first, last, chunk, array):
        if first == failing:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backends.run_kernel(kernel, torch.zeros(4, 1, 3))


FORKED = """
import os, torch
from bkray.model.backends import run_kernel

def kernel(first, last, chunk, array):
    array[first:last] += 1

torch.set_num_threads(2)
done = torch.zeros(4, 1, 3)
run_kernel(kernel, done)
child = os.fork()
run_kernel(kernel, done)
if not child:
    os._exit(0 if done.flatten().tolist() == [2.0] * 12 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_process_does_without_threads_that_it_has_not():
    process = subprocess.run([sys.executable, "-c", FORKED], timeout=120, check=False)
    assert process.returncode == 0
