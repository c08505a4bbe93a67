"""A worker that computes keeps the memory that a step has freed, so that the next finds it mapped."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from bkray.runtime.one_core import work_on_one_core
if sys.argv[1] == "set up":
    work_on_one_core()
for _ in range(20):
    torch.zeros(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.zeros(16 << 20)  # 64 MiB
print(torch.get_num_threads() == 1, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how):
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    one_thread, faults = run.stdout.split()
    return one_thread, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays():
    one_thread, faults = page_faults("set up")
    assert one_thread == "True"
    assert faults < 40_000
    assert page_faults("usual")[1] > 100_000
