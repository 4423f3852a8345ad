"""The walls: the mount namespace a sandbox starts from, made by real root and locked on entering (policy.py).

Everything runs in one process that has just unshared its mount namespace, so the host sees nothing of it.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from pvcnoded.sandbox import mounts
from pvcnoded.sandbox.policy import HIDDEN, WRITABLE

HARD = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV
SHUT = HARD | mounts.MOUNT_ATTR_NOEXEC | mounts.MOUNT_ATTR_RDONLY
STICKY = ("/tmp", "/var/tmp")
RESOLV_CONF = "/etc/resolv.conf"
SLIRP_RESOLVER = "10.0.2.3"
# Where our two file systems stand while parts of them are handed out; ends up covered by the sandbox's /tmp.
STAGE = "/tmp"


class Cover(NamedTuple):
    """A path of the host and whether it is a directory."""

    path: str
    directory: bool


def build_walls(
    *, owner: int, dev_fd: int, memory_mib: int, hidden_paths: Iterable[str], network: bool
) -> None:
    """Turn the calling process's own, fresh mount namespace into the sandbox's view of the host.

    Needs real root, in a process namespace of its own (its /proc is mounted). `dev_fd` is the detached tmpfs
    of devices.py. Undone by the end of the process.
    """
    mounts.make_private()
    resolver = _resolver_settings()
    writable = [rule.what for rule in WRITABLE if _is_directory(rule.what)]
    covers = find_covers(hidden_paths, writable)
    for directory in ("/sys", "/dev"):
        mounts.detach_below(directory)
    for path in (*writable, *(cover.path for cover in covers)):
        mounts.detach_below(path, itself=True)
    mounts.umount("/proc", mounts.MNT_DETACH)
    mounts.set_attributes(mounts.AT_FDCWD, SHUT & ~mounts.MOUNT_ATTR_NOEXEC, recursive=True)
    mounts.mount("proc", "/proc", "proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC)
    mounts.attach(dev_fd, "/dev")
    _cover(covers, resolver if network else "")
    _open_writable(writable, owner, memory_mib, resolver if network else "")


def find_covers(hidden_paths: Iterable[str], writable: Iterable[str]) -> list[Cover]:
    """What of the host has to be covered, outermost first, nothing twice, nothing below a replaced path."""
    wanted = sorted(
        {os.path.realpath(path) for path in (*(r.what for r in HIDDEN), *hidden_paths, *_sockets())}
    )
    gone = list(writable)
    covers = []
    for path in wanted:
        if path == "/":
            raise OSError("hide /: the whole file system cannot be hidden")
        if _below(path, gone) or _below(path, ("/dev", "/proc", "/sys")) or not os.path.lexists(path):
            continue
        covers.append(Cover(path, os.path.isdir(path)))
        gone.append(path)
    return covers


def _below(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(directory + "/") for directory in directories)


def _is_directory(path: str) -> bool:
    """A directory of its own; a symbolic link to one (/var/run) is covered with its target."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _sockets() -> list[str]:
    """Paths of all named Unix sockets of the host's network namespace."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        rows = [line.rstrip("\n").split(maxsplit=7) for line in table]
    return [row[7] for row in rows if len(row) == 8 and row[7].startswith("/")]


def _cover(covers: Iterable[Cover], resolver: str) -> None:
    """Put an empty directory or file, or the resolver's settings, over each path."""
    masks = mounts.create_mount(
        "tmpfs", (("mode", "0755"), ("size", "64k")), source="pvc-mask", attributes=HARD
    )
    os.mkdir("directory", 0o555, dir_fd=masks)
    _write_at(masks, "file", "")
    _write_at(masks, "resolv.conf", resolver)
    mounts.set_attributes(masks, SHUT)
    mounts.attach(masks, STAGE)
    os.close(masks)
    for cover in covers:
        # A socket may vanish at any time, and so may the path that named it.
        with contextlib.suppress(FileNotFoundError):
            mounts.bind(f"{STAGE}/{'directory' if cover.directory else 'file'}", cover.path)
    if resolver and _is_file(RESOLV_CONF):
        mounts.bind(f"{STAGE}/resolv.conf", os.path.realpath(RESOLV_CONF))


def _open_writable(paths: Iterable[str], owner: int, memory_mib: int, resolver: str) -> None:
    """Mount one tmpfs in parts over all writable directories; the place it is handed out from comes last."""
    options = (("mode", "0755"), ("size", f"{memory_mib // 2}m"), ("uid", str(owner)), ("gid", str(owner)))
    scratch = mounts.create_mount("tmpfs", options, source="pvc-scratch", attributes=HARD)
    names = {path: path.strip("/").replace("/", "-") for path in paths}
    for path, name in names.items():
        os.mkdir(name, dir_fd=scratch)
        os.chown(name, owner, owner, dir_fd=scratch)
        os.chmod(name, 0o1777 if path in STICKY else 0o755, dir_fd=scratch)
    mounts.attach(scratch, STAGE)
    os.close(scratch)
    for path in sorted(names, key=lambda path: path == STAGE):
        mounts.bind(f"{STAGE}/{names[path]}", path)
    _place_resolver(resolver, owner)


def _place_resolver(resolver: str, owner: int) -> None:
    """Where /etc/resolv.conf is a link into /run (systemd-resolved), make the file it leads to."""
    target = os.path.realpath(RESOLV_CONF)
    if not resolver or os.path.exists(target) or not target.startswith("/run/"):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w") as settings:
        settings.write(resolver)
    os.chmod(target, 0o644)
    os.chown(target, owner, owner)


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and not os.path.realpath(path).startswith("/run/")


def _resolver_settings() -> str:
    """resolv.conf for the inside: the sandbox's own resolver, with the host's search list and options."""
    kept = []
    with (
        contextlib.suppress(FileNotFoundError),
        open(RESOLV_CONF, encoding="utf-8", errors="replace") as settings,
    ):
        kept = [line.strip() for line in settings if line.split(maxsplit=1)[:1] in (["search"], ["options"])]
    return "\n".join([f"nameserver {SLIRP_RESOLVER}", *kept]) + "\n"


def _write_at(directory: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=directory)
    with open(fd, "w") as stream:
        stream.write(text)
        os.fchmod(fd, 0o444)
