"""Partitions of a block device, told to the kernel one by one (BLKPG).

Works on kernels that do not read partition tables, and needs no re-reading of the table on those that do.
"""

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from pvccommon.errors import EnvironmentFault, WrongInput
from pvccommon.storage.faults import fault
from pvccommon.storage.pool import SECTOR_BYTES

# linux/blkpg.h
BLKPG = 0x1269
BLKPG_ADD_PARTITION = 1
BLKPG_DEL_PARTITION = 2
MAX_PARTITIONS = 128


class BlkpgPartition(ctypes.Structure):
    """struct blkpg_partition; start and length in bytes."""

    _fields_ = (
        ("start", ctypes.c_longlong),
        ("length", ctypes.c_longlong),
        ("pno", ctypes.c_int),
        ("devname", ctypes.c_char * 64),
        ("volname", ctypes.c_char * 64),
    )


class BlkpgIoctlArg(ctypes.Structure):
    """struct blkpg_ioctl_arg."""

    _fields_ = (
        ("op", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("datalen", ctypes.c_int),
        ("data", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Partition:
    """Where a partition lies on its device."""

    number: int
    start_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class PartitionDevice:
    """A partition the kernel knows: `name` is "loop3p1", `path` its node under /dev (made by devtmpfs)."""

    path: str
    name: str
    major: int
    minor: int
    partition: Partition


def add_partition(device_fd: int, number: int, start_bytes: int, size_bytes: int) -> PartitionDevice:
    """Tell the kernel of a partition. Safe to repeat; one of this number that lies elsewhere is replaced.

    Gone with the device, or by `delete_partition`. Raises WrongInput for numbers and extents that cannot be.
    """
    wanted = Partition(number, start_bytes, size_bytes)
    _check(wanted)
    there = {found.partition.number: found for found in list_partitions(device_fd)}.get(number)
    if there is not None and there.partition == wanted:
        return there
    if there is not None:
        delete_partition(device_fd, number)
    _blkpg(device_fd, BLKPG_ADD_PARTITION, wanted)
    for found in list_partitions(device_fd):
        if found.partition == wanted:
            return found
    raise EnvironmentFault(f"add partition {number}", "the kernel took it but does not show it in /sys")


def delete_partition(device_fd: int, number: int) -> None:
    """Make the kernel forget a partition. Safe to repeat; raises Busy while it is mounted or open."""
    try:
        _blkpg(device_fd, BLKPG_DEL_PARTITION, Partition(number, 0, 0), missing_ok=True)
    except OverflowError as exc:
        raise WrongInput(f"delete partition {number}", "no such number can be") from exc


def list_partitions(device_fd: int) -> list[PartitionDevice]:
    """The partitions the kernel knows of this device, by number."""
    directory = _sysfs_directory(device_fd)
    entries = [entry.parent for entry in directory.glob("*/partition")]
    return sorted((_read_partition(entry) for entry in entries), key=lambda found: found.partition.number)


def _read_partition(entry: Path) -> PartitionDevice:
    major, minor = (entry / "dev").read_text().strip().split(":")
    number, start, size = (int((entry / name).read_text()) for name in ("partition", "start", "size"))
    partition = Partition(number, start * SECTOR_BYTES, size * SECTOR_BYTES)
    return PartitionDevice(f"/dev/{entry.name}", entry.name, int(major), int(minor), partition)


def _sysfs_directory(device_fd: int) -> Path:
    device = os.fstat(device_fd).st_rdev
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()


def _check(wanted: Partition) -> None:
    what = f"add partition {wanted.number}"
    if not 1 <= wanted.number <= MAX_PARTITIONS:
        raise WrongInput(what, f"the number must be from 1 to {MAX_PARTITIONS}")
    if wanted.start_bytes <= 0 or wanted.size_bytes <= 0:
        raise WrongInput(what, "start and size must be positive")
    if wanted.start_bytes % SECTOR_BYTES or wanted.size_bytes % SECTOR_BYTES:
        raise WrongInput(what, f"start and size must be multiples of {SECTOR_BYTES} bytes")


def _blkpg(device_fd: int, operation: int, partition: Partition, *, missing_ok: bool = False) -> None:
    data = BlkpgPartition(start=partition.start_bytes, length=partition.size_bytes, pno=partition.number)
    argument = BlkpgIoctlArg(op=operation, datalen=ctypes.sizeof(data), data=ctypes.addressof(data))
    verb = "add" if operation == BLKPG_ADD_PARTITION else "delete"
    try:
        fcntl.ioctl(device_fd, BLKPG, bytes(argument))
    except OSError as exc:
        if missing_ok and exc.errno == errno.ENXIO:
            return
        what = f"{verb} partition {partition.number}"
        if exc.errno == errno.EINVAL or (exc.errno == errno.EBUSY and operation == BLKPG_ADD_PARTITION):
            extent = f"{partition.size_bytes} bytes at {partition.start_bytes}"
            why = f"{extent} do not fit the device or its other partitions"
            raise WrongInput(what, why) from exc
        raise fault(what, exc) from exc
