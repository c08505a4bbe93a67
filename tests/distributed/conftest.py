import pytest
import torch.multiprocessing as mp

from tests.forks import fork_server


@pytest.fixture(scope="session")
def spawn():
    """Call `work(rank, *arguments)` in `nprocs` processes, like `mp.spawn`."""

    def call(work, arguments, nprocs):
        mp.start_processes(work, arguments, nprocs, start_method=fork_server())

    return call
