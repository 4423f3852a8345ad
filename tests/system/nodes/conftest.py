"""Two nodes over one Ceph, each with a pool of its own as well; short times, so that a node is soon dead."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "builds"))
sys.path.insert(0, str(Path(__file__).parent))

from cluster import SETTINGS
from pair import Pair

from devstack import temporary_stack
from devstack.configuration import merged

SHORT = {
    "node": {"heartbeat_s": 1, "dead_after_s": 4},
    "builds": {"lease_s": 4},
    "queue": {"visibility_timeout_s": 3},
    "storage": {"pools": {"local": {"driver": "directory"}}},
}


@pytest.fixture(scope="session")
def whole_pair() -> Iterator[Pair]:
    with temporary_stack(pool="ceph", nodes=2, settings=merged(SETTINGS, SHORT)) as stack:
        with closing(Pair(stack)) as pair:
            yield pair


@pytest.fixture
def pair(whole_pair: Pair) -> Iterator[Pair]:
    """Both nodes run; afterwards they run again, and nothing is left of the test."""
    whole_pair.wait_until_alive(1, 2)
    before = whole_pair.footprint()
    yield whole_pair
    for node in (1, 2):
        whole_pair.stack.thaw_node(node)
        whole_pair.stack.start_node(node)
    deadline = time.monotonic() + 20
    while (left := whole_pair.footprint() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == set()
