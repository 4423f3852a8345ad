"""Whether a Linux system on a mounted root can drive virtio disks and network cards.

A disk's driver has to be in the kernel or in its initial file system, a card's may also be a module. The
initial file system is listed by the guest's own program, in this sandbox: the guest knows its format.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmbuilder import chroot
from vmbuilder.command import run
from vmbuilder.errors import CommandFailed
from vmbuilder.target import Target

_DISK_MODULES: Final = frozenset({"virtio_pci", "virtio_scsi"})
_NIC_MODULES: Final = frozenset({"virtio_pci", "virtio_net"})
_MODULES: Final = ("/usr/lib/modules", "/lib/modules")
_INITRDS: Final = (
    ("/usr/bin/lsinitramfs", "/boot/initrd.img-{}"),
    ("/usr/bin/lsinitrd", "/boot/initramfs-{}.img"),
)
_MAX_LIST_BYTES: Final = 4 * 1024**2
_TIMEOUT_S: Final = 120


@dataclass(frozen=True)
class Drivers:
    """None: it could not be found out."""

    disk: bool | None = None
    nic: bool | None = None


def find_virtio(root: Path) -> Drivers:
    """Look at every kernel of the system; one without the drivers is enough for a no."""
    found = list(_kernels(Target(root)))
    if not found:
        return Drivers()
    disks = [disk for disk, _ in found]
    return Drivers(None if None in disks else all(disks), all(nic for _, nic in found))


def _kernels(target: Target) -> Iterator[tuple[bool | None, bool]]:
    """(disk, card) of each kernel."""
    with chroot.entered(target.root):
        inside = Target("/")
        place = next((path for path in map(Path, _MODULES) if path.is_dir()), None)
        versions = sorted(path.name for path in place.iterdir()) if place else []
        lists = {
            version: (
                _names(inside, f"{place}/{version}/modules.builtin"),
                _names(inside, f"{place}/{version}/modules.dep"),
            )
            for version in versions
        }
    for version, (builtin, modules) in lists.items():
        if not builtin and not modules:
            continue
        early = _initrd(target, version) if not builtin >= _DISK_MODULES else frozenset()
        disk = None if early is None else builtin | early >= _DISK_MODULES
        yield disk, builtin | modules >= _NIC_MODULES


def _names(target: Target, path: str) -> frozenset[str]:
    """The modules that a file of depmod(8) names, without folders and endings."""
    return frozenset(
        _module(line.split(":")[0]) for line in target.read_text(path, _MAX_LIST_BYTES).splitlines()
    )


def _module(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".", 1)[0].replace("-", "_")


def _initrd(target: Target, version: str) -> frozenset[str] | None:
    """The modules in a kernel's initial file system; None when it cannot be listed."""
    for program, image in _INITRDS:
        path = image.format(version)
        if not (target.has(program) and target.has(path)):
            continue
        try:
            with chroot.system_mounts(target.root):
                listed = run([program, path], chroot=target.root, timeout_s=_TIMEOUT_S, quiet=True).stdout
        except CommandFailed:
            return None
        words = (line.split()[-1] for line in listed.splitlines() if ".ko" in line)
        return frozenset(_module(word) for word in words)
    return None
