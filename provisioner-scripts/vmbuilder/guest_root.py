"""The root file system of a system that is on a VM's disks already, found and mounted.

Mounting means that the node's kernel reads a file system somebody else has made: see docs/security.md. A
builder does it only when its user asks for it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmbuilder import log
from vmbuilder.errors import BrokerError, ValidationError
from vmbuilder.image_disk import Area, ImageDisk
from vmbuilder.volumes import Volumes

ROOT_KINDS: Final = ("ext4", "ext3", "ext2", "xfs", "btrfs")
# Where a btrfs keeps the root: at its top, or in a subvolume of one of these names.
_SUBVOLUMES: Final = ("", "root", "@", "@rootfs")
_SIGNS: Final = ("etc/os-release", "etc/passwd", "usr/lib/os-release")


@dataclass(frozen=True)
class GuestRoot:
    """The root directory, mounted and writable; `kind` is that of its file system."""

    path: Path
    kind: str


def mount_root(volumes: Volumes, disks: Sequence[ImageDisk], place: str) -> GuestRoot:
    """Mount at `place` the file system that holds a root directory; unmounted by `Volumes.release`.

    Raises ValidationError when none of the disks has one that can be mounted here.
    """
    for disk, area in _candidates(disks):
        disk.volume.content = disk.content(area)
        try:
            volumes.mount_one(disk.volume, place)
        except BrokerError as exc:
            log.write(log.Level.WARNING, f"{area.kind} on {area.node} cannot be mounted: {exc}")
            continue
        for name in _SUBVOLUMES if area.kind == "btrfs" else _SUBVOLUMES[:1]:
            path = Path(place, name)
            if _is_root(path):
                log.write(log.Level.INFO, f"the root file system is the {area.kind} on {area.node}")
                return GuestRoot(path, area.kind)
        volumes.unmount()
    raise ValidationError(
        "no root file system was found on the image's disks"
        f" (looked for {', '.join(ROOT_KINDS)}; not in LVM or encrypted ones): use personalise=false"
    )


def _candidates(disks: Sequence[ImageDisk]) -> Iterator[tuple[ImageDisk, Area]]:
    for disk in disks:
        for area in disk.areas():
            if area.kind in ROOT_KINDS:
                yield disk, area


def _is_root(path: Path) -> bool:
    """Whether a mounted directory is a root. Links in it are not followed: they could lead out of it."""
    directories = all(_is_directory(path / name) for name in ("etc", "var"))
    return directories and any(os.path.lexists(path / sign) for sign in _SIGNS)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
