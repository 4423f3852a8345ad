"""Loop devices that clean up after themselves, by ioctl.

The device is bound and given its flags in one step (LOOP_CONFIGURE, Linux 5.8) and has the auto-clear flag:
the kernel releases it when its last user is gone, so neither an exception nor SIGKILL leaves one behind.
"""

import ctypes
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pvccommon.errors import Busy, EnvironmentFault
from pvccommon.storage.faults import fault, os_errors
from pvccommon.storage.pool import BlockDevice

log = logging.getLogger(__name__)

# linux/loop.h
LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_PARTSCAN = 8
LO_FLAGS_DIRECT_IO = 16

ATTEMPTS = 64
CLEAR_TIMEOUT_S = 5.0


class LoopInfo64(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * 64),
        ("lo_crypt_name", ctypes.c_char * 64),
        ("lo_encrypt_key", ctypes.c_char * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class LoopConfig(ctypes.Structure):
    """struct loop_config."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


@contextmanager
def loop_device(
    backing_fd: int, label: str, *, read_only: bool = False, direct_io: bool = True
) -> Iterator[BlockDevice]:
    """A block device on an open file, until the context ends or the process dies.

    `backing_fd` can be closed once this is entered; locks on it stay held until the device is gone. `label`
    shows in `losetup -l` and in errors. At the end everything written is flushed (an error of that is
    raised) and the device is seen to be gone; raises Busy when something still holds it. After an error
    inside, neither hides that error.
    """
    device = attach(backing_fd, label, read_only=read_only, direct_io=direct_io)
    try:
        yield device
        if not read_only:
            with os_errors(f"flush {device.path} of {label}"):
                os.fsync(device.fd)
    except BaseException:
        os.close(device.fd)
        if not _wait_until_clear(device):
            log.warning("loop device still in use after an error: device=%s volume=%s", device.path, label)
        raise
    os.close(device.fd)
    if not _wait_until_clear(device):
        raise Busy(
            f"release {device.path} of {label}",
            "something still holds it",
            f"see: lsof {device.path}; findmnt",
        )


def attach(backing_fd: int, label: str, *, read_only: bool = False, direct_io: bool = True) -> BlockDevice:
    """Bind a file to a free loop device. Undone by closing the `fd` of it, when nobody else has it open."""
    what = f"make a loop device of {label}"
    flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN
    flags |= LO_FLAGS_READ_ONLY if read_only else 0
    flags |= LO_FLAGS_DIRECT_IO if direct_io else 0
    for attempt in range(ATTEMPTS):
        number = _free_number(what)
        try:
            return _configure(number, backing_fd, label, flags)
        except OSError as exc:
            # Another process took this number first: ask for the next one.
            if exc.errno not in (errno.EBUSY, errno.EAGAIN):
                raise fault(what, exc) from exc
            time.sleep(0.001 * attempt)
    raise Busy(what, f"{ATTEMPTS} devices were taken by others first", "try again")


def read_label(fd: int) -> str:
    """The label a bound loop device was given. Raises OSError when it is not bound."""
    found = bytearray(ctypes.sizeof(LoopInfo64))
    fcntl.ioctl(fd, LOOP_GET_STATUS64, found)
    return bytes(LoopInfo64.from_buffer(found).lo_file_name).decode(errors="replace")


def clear(path: str) -> None:
    """Free a loop device, at once or with its last user. One that is free already is fine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
    finally:
        os.close(fd)


def _free_number(what: str) -> int:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise EnvironmentFault(
            what, f"/dev/loop-control: {exc.strerror}", "root and the loop module are needed"
        ) from exc
    try:
        with os_errors(what):
            return fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _configure(number: int, backing_fd: int, label: str, flags: int) -> BlockDevice:
    path = f"/dev/loop{number}"
    mode = os.O_RDONLY if flags & LO_FLAGS_READ_ONLY else os.O_RDWR
    fd = os.open(path, mode | os.O_CLOEXEC)
    try:
        # udev neither probes nor re-reads a device locked so (systemd, "Locking Block Device Access").
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        config = LoopConfig(fd=backing_fd, info=LoopInfo64(lo_flags=flags, lo_file_name=label.encode()[:63]))
        fcntl.ioctl(fd, LOOP_CONFIGURE, bytes(config))
        device = os.fstat(fd).st_rdev
        return BlockDevice(path, f"loop{number}", os.major(device), os.minor(device), fd)
    except BaseException:
        os.close(fd)
        raise


def _wait_until_clear(device: BlockDevice) -> bool:
    """Whether the device is free within a few seconds: udev may look at it for a moment after our close."""
    deadline = time.monotonic() + CLEAR_TIMEOUT_S
    while os.path.exists(f"/sys/block/{device.name}/loop/backing_file"):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
