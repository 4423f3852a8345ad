"""One stack for all tests of builds, and the check that each test leaves the machine as it was."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from devstack import Stack, temporary_stack

sys.path.insert(0, str(Path(__file__).parent))

from cluster import FIRST_UID, Cluster

SETTINGS = {
    "node": {"heartbeat_s": 1},
    "sandbox": {"first_uid": FIRST_UID},
    "builds": {
        "log_limit_bytes": 200_000,
        "stage_timeout_s": {"setup": 5, "create": 5, "prepare": 60, "cleanup": 10},
    },
}


@pytest.fixture(scope="session")
def ceph_cluster(ceph: Stack) -> Iterator[Cluster]:
    """The same over a pool of Ceph."""
    ceph.up(settings=SETTINGS)
    with closing(Cluster(ceph)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with temporary_stack(settings=SETTINGS) as stack:
        with closing(Cluster(stack)) as cluster:
            yield cluster


@pytest.fixture
def no_leaks(cluster: Cluster) -> Iterator[None]:
    """Whatever the test does, afterwards the machine holds nothing new."""
    before = cluster.footprint()
    yield
    deadline = time.monotonic() + 10
    while (left := cluster.footprint().since(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}
