"""Makes the helpers beside this file importable, and skips where the machine cannot do it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))
# Readers of what a builder writes are shared with the unit tests.
sys.path.append(str(Path(__file__).parents[2] / "unit" / "sdk"))

from pvccommon.storage.directory import DirectoryPool


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: sandboxes and loop devices")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[DirectoryPool]:
    """An empty pool called vms; afterwards no loop device points into it."""
    yield DirectoryPool("vms", tmp_path / "pool")
    left = [
        path
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if str(tmp_path) in path.read_text()
    ]
    assert left == []
