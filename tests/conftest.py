"""What all tests share: one Ceph for a whole run, because it takes a while to start."""

import os
import shutil
from collections.abc import Iterator

import pytest

from devstack import Stack, temporary_stack


@pytest.fixture(scope="session")
def ceph() -> Iterator[Stack]:
    """A stack of which only Ceph runs; `up` on it starts the rest. Leave its pool empty."""
    if os.geteuid() != 0 or shutil.which("ceph-osd") is None:
        pytest.skip("needs root and Ceph")
    with temporary_stack(only=["ceph"], pool="ceph") as stack:
        yield stack
