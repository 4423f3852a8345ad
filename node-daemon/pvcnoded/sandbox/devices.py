"""The sandbox's /dev: one tmpfs whose directory descriptor stays with the worker.

Directories belong to real root, so the sandbox can add, link or rename nothing in it; disk nodes belong to
the sandbox's root. The tmpfs itself must not be nodev, it is the one place where nodes work.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

from pvcnoded.sandbox import mounts
from pvcnoded.sandbox.policy import DEVICE_LINKS, DEVICE_NODES

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DeviceDirectory:
    """/dev of one sandbox, and the block devices given to it.

    Every block device is kept open while the sandbox has its node: a script can then not make the kernel
    free the device's number, which another build's disk could get next.
    """

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._pins: dict[str, int] = {}
        self._links: dict[str, tuple[str, ...]] = {}
        attributes = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NOEXEC
        options = (("mode", "0755"), ("size", "1m"), ("nr_inodes", "4096"))
        self.fd = mounts.create_mount("tmpfs", options, source="pvc-dev", attributes=attributes)
        for name, major, minor in DEVICE_NODES:
            self._make_node(name, stat.S_IFCHR | 0o666, major, minor)
        for name, target in DEVICE_LINKS:
            os.symlink(target, name, dir_fd=self.fd)
        for name in ("pts", "shm"):
            os.mkdir(name, 0o755, dir_fd=self.fd)

    def add(self, name: str, major: int, minor: int, links: Iterable[str] = ()) -> None:
        """Make /dev/<name>, and links to it. Safe to repeat for the same device."""
        links = tuple(links)
        parts = split_name(name)
        for link in links:
            split_name(link)
        if name in self._pins:
            if (os.major(self.number(name)), os.minor(self.number(name))) != (major, minor):
                raise OSError(f"add device {name}: another device has this name")
            self._make_links(name, links)
            return
        with self._parent(parts, create=True) as (directory, leaf):
            self._make_node(leaf, stat.S_IFBLK | 0o600, major, minor, directory=directory)
            os.chown(leaf, self._owner, self._owner, dir_fd=directory, follow_symlinks=False)
            try:
                self._pins[name] = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            except OSError as exc:
                os.unlink(leaf, dir_fd=directory)
                raise OSError(exc.errno, f"open block device {major}:{minor}: {exc.strerror}") from exc
        self._links[name] = ()
        self._make_links(name, links)

    def remove(self, name: str) -> None:
        """Take the node and its links away; a kept hard link or bind mount of it opens nothing any more.

        Safe to repeat. Descriptors the sandbox has open stay open and keep the device itself in use.
        """
        pin = self._pins.pop(name, None)
        if pin is None:
            return
        try:
            for link in self._links.pop(name, ()):
                with (
                    self._parent(split_name(link)) as (directory, leaf),
                    contextlib.suppress(FileNotFoundError),
                ):
                    os.unlink(leaf, dir_fd=directory)
            with self._parent(split_name(name)) as (directory, leaf):
                # First the owner, so that the sandbox cannot change the mode back.
                os.chown(leaf, 0, 0, dir_fd=directory, follow_symlinks=False)
                os.chmod(leaf, 0, dir_fd=directory)
                os.unlink(leaf, dir_fd=directory)
        finally:
            os.close(pin)

    def number(self, name: str) -> int:
        """The device number behind a name; KeyError if the sandbox does not have it."""
        return os.fstat(self._pins[name]).st_rdev

    def remove_all(self) -> None:
        for name in list(self._pins):
            self.remove(name)

    def _make_node(
        self, name: str, mode: int, major: int, minor: int, *, directory: int | None = None
    ) -> None:
        directory = self.fd if directory is None else directory
        os.mknod(name, mode, os.makedev(major, minor), dir_fd=directory)
        os.chmod(name, stat.S_IMODE(mode), dir_fd=directory)  # whatever the umask is

    def _make_links(self, name: str, links: Iterable[str]) -> None:
        for link in links:
            parts = split_name(link)
            with self._parent(parts, create=True) as (directory, leaf):
                with contextlib.suppress(FileNotFoundError):
                    if not stat.S_ISLNK(os.stat(leaf, dir_fd=directory, follow_symlinks=False).st_mode):
                        raise OSError(f"link device {name}: {link} is not a link")
                    os.unlink(leaf, dir_fd=directory)
                os.symlink("../" * (len(parts) - 1) + name, leaf, dir_fd=directory)
            self._links[name] = (*(known for known in self._links[name] if known != link), link)

    @contextlib.contextmanager
    def _parent(self, parts: list[str], *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Descriptor of the directory that holds the last part; no symbolic link is followed on the way."""
        directory = os.dup(self.fd)
        try:
            for part in parts[:-1]:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=directory)
                below = os.open(part, DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = below
            yield directory, parts[-1]
        finally:
            os.close(directory)


def split_name(name: str) -> list[str]:
    """Parts of a name below /dev; OSError for one that could lead elsewhere."""
    parts = name.split("/")
    if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise OSError(f"device name {name!r} is not a plain path below /dev")
    return parts
