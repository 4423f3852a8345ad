"""Linux mounts by system call: the mount API of Linux 5.2 and later, id-mapped, no path of the host involved.

Nothing here is undone by itself except by closing descriptors: a mount that is attached nowhere ends with its
last descriptor. util-linux 2.38 has no option for id-mapped mounts, hence this module. See fsopen(2),
mount_setattr(2), move_mount(2), mount_namespaces(7).
"""

import ctypes
import errno
import os
from collections.abc import Iterable

# System call numbers above 423 are the same on all architectures but Alpha (asm-generic/unistd.h).
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_MOUNT_SETATTR = 442

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
O_PATH = 0x200000  # in `os` since Python 3.10 only where the C library has it

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_BIND = 0x1000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
OPEN_TREE_CLONE = 1
FSOPEN_CLOEXEC = 1

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_IDMAP = 0x00100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _checked(int(_libc.syscall(ctypes.c_long(number), *arguments)), what)


def _bytes(path: str) -> ctypes.c_char_p:
    return ctypes.c_char_p(os.fsencode(path))


def unshare(flags: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero), "prctl")


def mount(source: str, target: str, filesystem: str, flags: int, options: str = "") -> None:
    """mount(2), the old call: for binds, propagation and the kernel's own file systems."""
    result = _libc.mount(
        _bytes(source), _bytes(target), _bytes(filesystem), ctypes.c_ulong(flags), _bytes(options)
    )
    _checked(result, f"mount {target}")


def umount(target: str, flags: int = 0) -> None:
    _checked(_libc.umount2(_bytes(target), ctypes.c_int(flags)), f"unmount {target}")


def make_private() -> None:
    """Stop the calling process's mount namespace from exchanging mounts with any other."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def bind(source: str, target: str) -> None:
    """Show `source` (a file or directory, without what is mounted below it) at `target`, too."""
    mount(source, target, "", MS_BIND)


def create_mount(
    filesystem: str,
    options: Iterable[tuple[str, str | None]],
    *,
    source: str | None = None,
    attributes: int = 0,
) -> int:
    """Make a mount that is attached nowhere and return its descriptor (usable as a directory descriptor).

    An option with value None is a flag. Raises OSError with the file system's own message.
    """
    context = _syscall(f"open file system {filesystem}", SYS_FSOPEN, _bytes(filesystem), FSOPEN_CLOEXEC)
    try:
        if source is not None:
            _configure(context, "source", source)
        for key, value in options:
            _configure(context, key, value)
        try:
            _syscall(f"mount {filesystem}", SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        except OSError as exc:
            raise OSError(exc.errno, f"{exc.strerror}{_messages(context)}") from exc
        return _syscall(
            f"mount {filesystem}", SYS_FSMOUNT, context, FSOPEN_CLOEXEC, ctypes.c_uint(attributes)
        )
    finally:
        # An open context keeps the superblock, and with it the block device, busy.
        os.close(context)


def _configure(context: int, key: str, value: str | None) -> None:
    what = f"set file system option {key}"
    if value is None:
        _syscall(what, SYS_FSCONFIG, context, FSCONFIG_SET_FLAG, _bytes(key), None, 0)
    else:
        _syscall(what, SYS_FSCONFIG, context, FSCONFIG_SET_STRING, _bytes(key), _bytes(value), 0)


def _messages(context: int) -> str:
    """What the file system has to say about a failure ("e text" a message), or nothing."""
    try:
        text = os.read(context, 4096).decode(errors="replace").strip()
    except OSError:
        return ""
    return f" ({text[2:]})" if text else ""


def set_attributes(fd: int, attributes: int, *, recursive: bool = False, userns_fd: int = 0) -> None:
    """mount_setattr(2) on a mount descriptor (AT_FDCWD with recursive=True: on the whole tree from /)."""
    attr = MountAttr(attr_set=attributes, attr_clr=0, propagation=0, userns_fd=userns_fd)
    path, flags = ("/", 0) if fd == AT_FDCWD else ("", AT_EMPTY_PATH)
    flags |= AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    _syscall(
        "set mount attributes",
        SYS_MOUNT_SETATTR,
        fd,
        _bytes(path),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        size,
    )


def attach(mount_fd: int, target: str | int) -> None:
    """Attach a detached mount at a path, or at what a descriptor refers to."""
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        _syscall(
            "attach mount", SYS_MOVE_MOUNT, mount_fd, _bytes(""), target, _bytes(""), ctypes.c_uint(flags)
        )
        return
    flags = ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH)  # type: ignore[assignment]
    _syscall(
        f"attach mount at {target}", SYS_MOVE_MOUNT, mount_fd, _bytes(""), AT_FDCWD, _bytes(target), flags
    )


def clone_mount(path: str) -> int:
    """A detached copy of the one mount at `path`, as a descriptor."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC
    return _syscall(f"copy mount {path}", SYS_OPEN_TREE, AT_FDCWD, _bytes(path), ctypes.c_uint(flags))


def mount_points() -> list[str]:
    """All mount points the calling process sees, in the order they were mounted."""
    with open("/proc/self/mountinfo", "rb") as table:
        fields = [line.split(b" ")[4] for line in table]
    return [os.fsdecode(_unescape(field)) for field in fields]


def _unescape(field: bytes) -> bytes:
    """mountinfo writes blank, tab, newline and backslash as three octal digits (proc(5))."""
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field


def detach_below(directory: str, *, itself: bool = False) -> None:
    """Take away every mount below a directory (and the one on it) from the calling process's namespace."""
    for point in reversed(mount_points()):
        if point.startswith(directory.rstrip("/") + "/") or (itself and point == directory):
            try:
                umount(point, MNT_DETACH | UMOUNT_NOFOLLOW)
            except OSError as exc:
                if exc.errno != errno.EINVAL:  # already gone with its parent
                    raise
