import multiprocessing

import pytest
import torch.multiprocessing as mp


@pytest.fixture(scope="session")
def spawn():
    """Call `work(rank, *arguments)` in `nprocs` processes, like `mp.spawn`.

    They are forked from one that has done the slow imports and nothing else, so it has no threads yet.
    """
    multiprocessing.set_forkserver_preload(["torch", "bkray.model", "bkray.training", "torch._dynamo"])

    def call(work, arguments, nprocs):
        mp.start_processes(work, arguments, nprocs, start_method="forkserver")

    return call
