"""A stack whose node and pool lie on small file systems, so that a test can fill them.

PostgreSQL, Redis and Ceph are not on them: they run on other machines than the hypervisor.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cluster import SETTINGS, Cluster

from devstack import Stack, temporary_stack
from devstack.state import PoolKind, State
from pvccommon.run import run

HOST, POOL = "host", "pools"  # where the two are mounted, below the state directory
SIZES_MIB = {HOST: 256, POOL: 12 * 1024}
# What the node's host keeps, beside the pool.
ON_HOST = ("node", "console", "libvirt", "log")
BALLAST = ".ballast"
SMALLEST_BYTES = 4096


@contextmanager
def small_stack(pool: PoolKind = "directory") -> Iterator[Cluster]:
    with temporary_stack(only=["redis"], pool=pool) as stack:
        mount_small_disks(stack.state)
        stack.up(settings=SETTINGS)
        with closing(Cluster(stack)) as cluster:
            yield cluster


def mount_small_disks(state: State) -> None:
    """`down` of the stack takes them away again."""
    for name, size_mib in SIZES_MIB.items():
        image = state / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(size_mib * 1024**2)
        options = ["-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
        run(["mkfs.ext4", *options, str(image)], timeout_s=60)
        (state / name).mkdir(exist_ok=True)
        run(["mount", "-o", "loop,noatime", str(image), str(state / name)], timeout_s=60)
        (state / name).chmod(0o711)
    for name in ON_HOST:
        for path in (state / HOST / name, state / name):
            path.mkdir(exist_ok=True)
            path.chmod(0o711)
        run(["mount", "--bind", str(state / HOST / name), str(state / name)], timeout_s=60)


def fill(mountpoint: Path) -> None:
    """Take all the space there is, without writing it."""
    with (mountpoint / BALLAST).open("ab") as file:
        step = 1 << 32
        while step >= SMALLEST_BYTES:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
            except OSError:
                step //= 2


def free(mountpoint: Path) -> None:
    (mountpoint / BALLAST).unlink(missing_ok=True)


__all__ = ["HOST", "POOL", "Stack", "fill", "free", "mount_small_disks", "small_stack"]
