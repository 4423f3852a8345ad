"""Making a system that was installed before, on another machine, this VM's own.

It works inside the mounted root, as its root directory: a link in somebody else's file system then leads to
where it would lead in the guest, never out of it.
"""

import os
from collections.abc import Sequence
from typing import Final

from vmbuilder import chroot, cloud_init, log, redhat
from vmbuilder.errors import ValidationError
from vmbuilder.target import Target, fstab
from vmbuilder.volumes import FileSystem

# What belongs to one machine only, besides what Target.reset_identity() forgets: patterns, with the reason.
FORGOTTEN: Final = {
    "/etc/udev/rules.d/70-persistent-net.rules": "names of network cards by the old addresses",
    "/etc/udev/rules.d/75-persistent-net-generator.rules": "makes the former",
    "/var/lib/dhcp/*.leases": "addresses leased to the old machine",
    "/var/lib/dhclient/*.leases": "the same",
    "/var/lib/NetworkManager/*.lease": "the same",
    "/var/lib/NetworkManager/secret_key": "DHCP identifiers are made of it",
    "/var/lib/systemd/credential.secret": "encrypts this machine's credentials",
    "/var/lib/systemd/network/*": "leases of systemd-networkd",
    "/etc/hostid": "ZFS: which machine uses a pool",
    "/etc/iscsi/initiatorname.iscsi": "name in a storage network; made anew by the package's service",
}
_LOCAL: Final = "localhost"


def renew(root: str | os.PathLike[str], instance: cloud_init.Instance) -> None:
    """Give the system at `root` its name and forget the old machine; the guest makes the rest at first boot.

    Raises ValidationError for user data that nothing in the guest would read.
    """
    with chroot.entered(root):
        target = Target("/")
        has_cloud_init = cloud_init.is_installed(target)
        if instance.userdata and not has_cloud_init:
            raise ValidationError("the profile has user data, but the image has no cloud-init")
        rename(target, instance.hostname)
        target.reset_identity()
        for pattern, why in FORGOTTEN.items():
            _forget(target, pattern, why)
        if has_cloud_init:
            cloud_init.renew(target, instance)
        redhat.relabel_on_first_boot(target)


def rename(target: Target, hostname: str) -> None:
    """Set the host name; in /etc/hosts the new one takes the place of the old."""
    old = _first_word(target, "/etc/hostname")
    target.write("/etc/hostname", f"{hostname}\n")
    hosts = target.read_text("/etc/hosts")
    if old and old != _LOCAL:
        hosts = "".join(_renamed(line, old, hostname) for line in hosts.splitlines(keepends=True))
    if hostname not in hosts.split():
        hosts = f"{_whole(hosts)}127.0.1.1\t{hostname}\n"
    target.write("/etc/hosts", hosts)


def add_mounts(root: str | os.PathLike[str], file_systems: Sequence[FileSystem]) -> None:
    """Have the guest mount these, too, besides what its fstab(5) names already."""
    with chroot.entered(root):
        target = Target("/")
        before = target.read_text("/etc/fstab")
        known = {line.split()[1] for line in before.splitlines() if len(line.split()) > 1}
        new = [item for item in file_systems if item.mountpoint not in known]
        for item in new:
            if item.mountpoint:
                target.path(item.mountpoint).mkdir(parents=True, exist_ok=True)
        if new:
            lines = fstab(new).splitlines(keepends=True)[1:]
            target.write("/etc/fstab", _whole(before) + "".join(lines))


def _whole(text: str) -> str:
    """A file's text with its last line ended."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _renamed(line: str, old: str, new: str) -> str:
    """A line of hosts(5) with the old name, and its full name, replaced."""
    if line.lstrip().startswith("#"):
        return line
    address, *names = line.split() or [""]
    changed = [new if name == old or name.startswith(f"{old}.") else name for name in names]
    return line if changed == names else f"{address}\t{' '.join(dict.fromkeys(changed))}\n"


def _forget(target: Target, pattern: str, why: str) -> None:
    for path in target.root.glob(pattern.lstrip("/")):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            log.write(log.Level.DEBUG, f"removed {path}: {why}")


def _first_word(target: Target, name: str) -> str:
    return next(iter(target.read_text(name).split()), "")
