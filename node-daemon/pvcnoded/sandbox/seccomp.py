"""The system call filter, compiled from the policy by libseccomp (slirp4netns depends on it)."""

import ctypes
import errno
import functools
import os
import platform
from collections.abc import Sequence

from pvcnoded.sandbox import policy

# seccomp.h of libseccomp 2.5
ACT_ALLOW = 0x7FFF0000
ACT_ERRNO = 0x00050000
CMP_MASKED_EQ = 7
NR_UNKNOWN = -1
ARCH_X86 = 0x40000003
ARCH_ARM = 0x40000028
FOREIGN_ARCH = {"x86_64": ARCH_X86, "aarch64": ARCH_ARM}  # 32-bit programs of a chroot are filtered, too
EEXIST = -errno.EEXIST


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp: for CMP_MASKED_EQ, `a` is the mask and `b` the value."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


@functools.cache
def filter_program() -> bytes:
    """The BPF program for `bwrap --add-seccomp-fd`; raises OSError if libseccomp is missing or refuses."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ACT_ALLOW)))
    if not context:
        raise OSError("make system call filter: seccomp_init failed")
    try:
        foreign = FOREIGN_ARCH.get(platform.machine())
        if foreign is not None:
            _check(library.seccomp_arch_add(context, ctypes.c_uint32(foreign)), "add architecture")
        for rule in policy.DENIED_SYSCALLS:
            _deny_call(library, context, rule.what)
        for request, rule in policy.DENIED_IOCTLS:
            _answer_ioctl(library, context, request, errno.EPERM, rule.what)
        for request, rule in policy.PRETENDED_IOCTLS:
            _answer_ioctl(library, context, request, 0, rule.what)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _deny_call(library: ctypes.CDLL, context: ctypes.c_void_p, name: str) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number != NR_UNKNOWN:  # unknown to this libseccomp: nothing to filter by name
        _add_rule(library, context, errno.EPERM, number, (), name)


def _answer_ioctl(
    library: ctypes.CDLL, context: ctypes.c_void_p, request: int, answer: int, name: str
) -> None:
    # The kernel looks at the low 32 bits of the request only, so the filter must as well.
    compare = Compare(argument=1, operator=CMP_MASKED_EQ, a=0xFFFFFFFF, b=request)
    number = library.seccomp_syscall_resolve_name(b"ioctl")
    _add_rule(library, context, answer, number, (compare,), name)


def _add_rule(
    library: ctypes.CDLL,
    context: ctypes.c_void_p,
    answer: int,
    number: int,
    compares: Sequence[Compare],
    name: str,
) -> None:
    """Answer a system call (with these arguments) with an error number; 0 is success without effect."""
    action = ctypes.c_uint32(ACT_ERRNO | answer)
    array = (Compare * len(compares))(*compares)
    result = library.seccomp_rule_add_array(
        context, action, ctypes.c_int(number), ctypes.c_uint(len(compares)), array
    )
    _check(result, f"rule for {name}")


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, ctypes.c_int(fd)), "export")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _check(result: int, what: str) -> None:
    if result < 0 and result != EEXIST:
        raise OSError(-result, f"make system call filter: {what}: {os.strerror(-result)}")
