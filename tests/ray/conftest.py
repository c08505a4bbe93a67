import pytest
import ray

from bkray.runtime.cluster import cluster


@pytest.fixture(scope="session")
def two_cpus():
    """A real local cluster with two logical CPUs, shared by the tests of this folder."""
    with cluster(cpus=2) as cpus:
        yield cpus
    assert not ray.is_initialized()
