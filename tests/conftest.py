"""What all tests share: Ctrl-C, and one Ceph for a whole run, because it takes a while to start."""

import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from devstack import Stack, temporary_stack


def pytest_configure() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C; tests send it to programs of theirs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Stack]:
    """A stack of which only Ceph runs; `up` on it starts the rest. Leave its pool empty."""
    if os.geteuid() != 0 or shutil.which("ceph-osd") is None:
        pytest.skip("needs root and Ceph")
    with temporary_stack(only=["ceph"], pool="ceph") as stack:
        yield stack
