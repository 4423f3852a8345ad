"""Errors of the operating system turned into ours."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pvccommon.errors import Busy, EnvironmentFault, NoSpace, PvcError
from pvccommon.run import CommandFailed

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IN_USE = (errno.EBUSY, errno.EAGAIN, errno.ETXTBSY)
DENIED = (errno.EPERM, errno.EACCES)

FREE_SPACE = "delete volumes or snapshots, or enlarge the pool"


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside into the fitting error of ours, saying what was tried."""
    try:
        yield
    except OSError as exc:
        raise fault(what, exc) from exc


def fault(what: str, exc: OSError) -> PvcError:
    """The error for a failed system call: NoSpace, Busy or EnvironmentFault."""
    why = exc.strerror or str(exc)
    if exc.errno in FULL:
        return NoSpace(what, why, FREE_SPACE)
    if exc.errno in IN_USE:
        return Busy(what, why, "find what uses it, or try again")
    if exc.errno in DENIED:
        return EnvironmentFault(what, why, "volumes are handled by root; is this the node daemon?")
    return EnvironmentFault(what, why)


@contextmanager
def qemu_errors(what: str) -> Iterator[None]:
    """Turn a failed QEMU program inside into the fitting error of ours."""
    try:
        yield
    except CommandFailed as exc:
        raise qemu_fault(what, exc.stderr or exc.why) from exc


def qemu_fault(what: str, stderr: str) -> PvcError:
    """The error for a message of qemu-img or qemu-storage-daemon."""
    why = stderr.strip().splitlines()[-1] if stderr.strip() else "it ended without a message"
    if "No space left" in stderr or "Disk quota exceeded" in stderr or "File too large" in stderr:
        return NoSpace(what, why, FREE_SPACE)
    if "lock" in stderr and ("Failed to get" in stderr or "another process" in stderr):
        return in_use(what)
    return EnvironmentFault(what, why)


def in_use(what: str) -> Busy:
    """The error for a volume that somebody has open."""
    return Busy(
        what, "the volume is open elsewhere", "stop its VM, or wait for the build or copy that uses it"
    )
