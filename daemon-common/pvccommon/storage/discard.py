"""Giving back the space of a part of a file, which reads as zeros afterwards: fallocate(2)."""

import ctypes
import errno
import os

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # FALLOC_FL_*, linux/falloc.h


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Of an ordinary file."""
    _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)


def zero_export(fd: int, offset: int, length: int) -> None:
    """Of QEMU's export of an image: it may ignore a part of what is discarded, but not what is zeroed."""
    _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
    _fallocate(fd, ZERO_RANGE | KEEP_SIZE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Python's own has no mode."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)
    while libc.fallocate64(*arguments) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
