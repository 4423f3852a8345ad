"""QEMU's image locks, so that a volume in use by a domain, qemu-img or ourselves is seen as such.

A user of an image holds a shared lock on byte 100+n for each permission n it has, and on byte 200+n for
each permission it does not share; nobody else may then hold the opposite (QEMU, block/file-posix.c). The
locks belong to the open file description (fcntl_locking(2), "OFD"): given to a loop device, they last
until that device is gone, even when the process has died.
"""

import fcntl
import os
import struct

from pvccommon.errors import Busy
from pvccommon.storage.faults import in_use

PERMISSION_BASE = 100
UNSHARED_BASE = 200
READ, WRITE, RESIZE = 0, 1, 3  # BLK_PERM_*, as bit numbers

# struct flock of a 64-bit kernel: l_type, l_whence, l_start, l_len, l_pid
FLOCK = struct.Struct("hhqqi4x")


def lock_image(fd: int, what: str, *, read_only: bool = False) -> None:
    """Take part in QEMU's locking with this descriptor; raises Busy saying `what` could not be done.

    A writer is alone; readers share. The descriptor must be open for reading. Undone by closing it.
    """
    permissions = (READ,) if read_only else (READ, WRITE, RESIZE)
    unshared = (WRITE, RESIZE)
    _share(fd, [PERMISSION_BASE + n for n in permissions] + [UNSHARED_BASE + n for n in unshared], what)
    for opposite in [UNSHARED_BASE + n for n in permissions] + [PERMISSION_BASE + n for n in unshared]:
        if _held_by_others(fd, opposite):
            raise in_use(what)


def lock_file(path: str | os.PathLike[str], what: str, *, read_only: bool = False) -> int:
    """Open and lock an image; the caller closes the descriptor."""
    fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        lock_image(fd, what, read_only=read_only)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_in_use(path: str | os.PathLike[str]) -> bool:
    """Whether anybody has the image open in a way that forbids writing to it."""
    try:
        os.close(lock_file(path, ""))
    except Busy:
        return True
    return False


def _share(fd: int, offsets: list[int], what: str) -> None:
    for offset in offsets:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0))
        except (BlockingIOError, PermissionError) as exc:
            raise in_use(what) from exc


def _held_by_others(fd: int, offset: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    return bool(FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
