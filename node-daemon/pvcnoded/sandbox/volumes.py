"""Mounting a volume's file system inside a sandbox.

The file system is opened by real root, id-mapped, and its flags are locked by crossing into the sandbox's
user namespace; the path is walked with the sandbox's own rights only, so that nothing on it can be used
against the host. Each step runs in a forked child of a single-threaded process.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from pvcnoded.sandbox import mounts
from pvcnoded.sandbox.policy import FILESYSTEMS, FORCED_OPTIONS
from pvcnoded.sandbox.userns import drop_to

AIRLOCK = "/proc"  # a directory that exists everywhere; covered only in a namespace nobody else sees


class Namespaces(NamedTuple):
    """Descriptors of a sandbox's user and mount namespaces."""

    user: int
    mount: int


def mount_volume(
    spaces: Namespaces,
    device: str,
    path: str,
    filesystem: str,
    read_only: bool,
    options: Mapping[str, str | None],
) -> None:
    """Mount the file system on a block device at a path of the sandbox; missing directories are made.

    The mount is nosuid and nodev, and the sandbox cannot change that: a script may write any inode it likes
    to its raw device, also a device node of the host's disk. Mode bits and capabilities of files are kept all
    the same, they just have no effect inside.
    """
    check_options(filesystem, options)
    in_child(lambda: _mount(spaces, device, path, filesystem, read_only, options))


def unmount_volume(spaces: Namespaces, path: str) -> None:
    """Unmount what is mounted at a path of the sandbox; OSError with EINVAL if nothing is."""

    def unmount() -> None:
        _enter(spaces)
        mounts.umount(path, mounts.UMOUNT_NOFOLLOW)

    in_child(unmount)


def check_options(filesystem: str, options: Mapping[str, str | None]) -> None:
    """OSError for a file system or option the policy does not list."""
    allowed = FILESYSTEMS.get(filesystem)
    if allowed is None:
        raise OSError(f"mount {filesystem}: the worker mounts only {', '.join(FILESYSTEMS)}")
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise OSError(f"mount {filesystem}: options not allowed: {', '.join(unknown)}")


def _mount(
    spaces: Namespaces,
    device: str,
    path: str,
    filesystem: str,
    read_only: bool,
    options: Mapping[str, str | None],
) -> None:
    attributes = mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOSUID
    flags: list[tuple[str, str | None]] = [(name, None) for name in FORCED_OPTIONS.get(filesystem, ())]
    if read_only:
        attributes |= mounts.MOUNT_ATTR_RDONLY
        flags.append(("ro", None))
    made = mounts.create_mount(filesystem, [*flags, *options.items()], source=device, attributes=attributes)
    mounts.set_attributes(made, mounts.MOUNT_ATTR_IDMAP, userns_fd=spaces.user)
    # Only a copy made while crossing into a less privileged mount namespace has its flags locked, hence the
    # detour: attach in a namespace of root's, copy that namespace as the sandbox's root, take it from there.
    mounts.unshare(mounts.CLONE_NEWNS)
    mounts.make_private()
    mounts.attach(made, AIRLOCK)
    os.close(made)
    mounts.setns(spaces.user, mounts.CLONE_NEWUSER)
    mounts.unshare(mounts.CLONE_NEWNS)
    locked = mounts.clone_mount(AIRLOCK)
    mounts.setns(spaces.mount, mounts.CLONE_NEWNS)
    mounts.attach(locked, _open_directory(path))


def _enter(spaces: Namespaces) -> None:
    """Become root of the sandbox: its rights, its files, nothing else."""
    mounts.setns(spaces.user, mounts.CLONE_NEWUSER)
    mounts.setns(spaces.mount, mounts.CLONE_NEWNS)


def _open_directory(path: str) -> int:
    """Descriptor of a directory inside, made if missing, owned by the sandbox's root."""
    drop_to(0)
    os.umask(0o022)
    os.makedirs(path, mode=0o755, exist_ok=True)
    return os.open(path, mounts.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def in_child(action: Callable[[], None]) -> None:
    """Run something in a forked child; its OSError is raised here. For single-threaded callers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _report(action, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        answer = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer:
        number, text = json.loads(answer)
        raise OSError(number, text)
    if status != 0:
        raise OSError(f"helper process ended with status {status}")


def _report(action: Callable[[], None], writer: int) -> NoReturn:
    status = 1
    try:
        action()
        status = 0
    except OSError as exc:
        os.write(writer, json.dumps([exc.errno or 0, exc.strerror or str(exc)]).encode())
    finally:
        os._exit(status)
