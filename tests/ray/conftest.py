import pytest
import ray

from bkray.runtime.cluster import cluster


@pytest.fixture(scope="session")
def four_cpus():
    """A real local cluster with four logical CPUs, shared by the tests of this folder."""
    with cluster(cpus=4) as cpus:
        yield cpus
    assert not ray.is_initialized()
