"""Pools to run the contract on. A new driver adds a maker to POOLS and every rule holds for it, too."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pvccommon.storage import StoragePool
from pvccommon.storage.directory import DirectoryPool

sys.path.append(str(Path(__file__).parent))

from storage_helpers import GIB, everything_in, qemu_content


@dataclass(frozen=True)
class PoolUnderTest:
    """A pool, another connection to it, how to read a volume, and what lies about besides volumes."""

    pool: StoragePool
    other: StoragePool
    content: Callable[[str], bytes]
    leftovers: Callable[[], list[str]]


def directory_pool(path: Path, volume_format: str) -> PoolUnderTest:
    def make() -> DirectoryPool:
        return DirectoryPool("vms", path, volume_format=volume_format, max_volume_bytes=64 * GIB)

    pool = make()
    return PoolUnderTest(
        pool, make(), lambda name: qemu_content(pool.disk_source(name)), lambda: everything_in(path)
    )


POOLS: dict[str, Callable[[Path], PoolUnderTest]] = {
    "directory-raw": lambda path: directory_pool(path, "raw"),
    "directory-qcow2": lambda path: directory_pool(path, "qcow2"),
}


@pytest.fixture(params=POOLS)
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PoolUnderTest]:
    yield POOLS[request.param](tmp_path / "pool")


@pytest.fixture
def pool(under_test: PoolUnderTest) -> StoragePool:
    return under_test.pool


@pytest.fixture
def content(under_test: PoolUnderTest) -> Callable[[str], bytes]:
    return under_test.content
