"""One stack for all tests of builds, and the check that each test leaves the machine as it was."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from devstack import Stack, temporary_stack

sys.path.insert(0, str(Path(__file__).parent))
sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
sys.path.append(str(Path(__file__).parents[2] / "unit" / "images"))

from cluster import SETTINGS, Cluster


@pytest.fixture(scope="session")
def ceph_cluster(ceph: Stack) -> Iterator[Cluster]:
    """The same over a pool of Ceph."""
    ceph.up(settings=SETTINGS)
    with closing(Cluster(ceph)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def directory_cluster() -> Iterator[Cluster]:
    with temporary_stack(settings=SETTINGS) as stack:
        with closing(Cluster(stack)) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def cluster(directory_cluster: Cluster) -> Cluster:
    return directory_cluster


@pytest.fixture
def no_leaks(cluster: Cluster) -> Iterator[None]:
    """Whatever the test does, afterwards the machine holds nothing new."""
    before = cluster.footprint()
    yield
    deadline = time.monotonic() + 10
    while (left := cluster.footprint().since(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}
