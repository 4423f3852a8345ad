"""Pools to run the contract on. A new driver adds a maker to POOLS and every rule holds for it, too."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devstack import Stack
from pvccommon.storage import StoragePool
from pvccommon.storage.directory import DirectoryPool
from pvccommon.storage.rbd import RbdPool

sys.path.append(str(Path(__file__).parent))

from storage_helpers import (
    GIB,
    everything_in,
    everything_in_rbd,
    qemu_content,
    rbd_account,
    rbd_content,
    remove_everything,
)


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


def rbd_pool(stack: Stack) -> PoolUnderTest:
    def make() -> RbdPool:
        return RbdPool("vms", rbd_account(stack), max_volume_bytes=64 * GIB)

    pool = make()
    return PoolUnderTest(
        pool, make(), lambda name: rbd_content(stack, name), lambda: everything_in_rbd(stack)
    )


POOLS: dict[str, Callable[[Path], PoolUnderTest]] = {
    "directory-raw": lambda path: directory_pool(path, "raw"),
    "directory-qcow2": lambda path: directory_pool(path, "qcow2"),
}


@pytest.fixture(params=[*POOLS, "rbd"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PoolUnderTest]:
    if request.param != "rbd":
        yield POOLS[request.param](tmp_path / "pool")
        return
    ceph: Stack = request.getfixturevalue("ceph")
    made = rbd_pool(ceph)
    yield made
    remove_everything(made.pool)
    assert made.leftovers() == []


@pytest.fixture
def pool(under_test: PoolUnderTest) -> StoragePool:
    return under_test.pool


@pytest.fixture
def content(under_test: PoolUnderTest) -> Callable[[str], bytes]:
    return under_test.content
