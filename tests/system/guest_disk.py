"""A disk with a small system on it, as an image would have it: made and read without mounting anything."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pvccommon.storage import StoragePool

MIB = 1024**2
START = (
    4 * MIB
)  # of the root partition; before it one for GRUB, with a higher number, as cloud images have it
ROOT = 1
TABLE = f"""\
label: gpt
14 : start=2048, size={START // 512 - 2048}, type=21686148-6449-6E6F-744E-656564454649
{ROOT} : start={START // 512}, type=L, name=root
"""
OLD = "golden"
FILES = {
    "/etc/hostname": f"{OLD}\n",
    "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {OLD}.example {OLD}\n10.0.0.9 backup\n",
    "/etc/os-release": "ID=tiny\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/etc/ssh/ssh_host_ed25519_key": "old private key\n",
    "/etc/ssh/ssh_host_ed25519_key.pub": "old public key\n",
    "/etc/udev/rules.d/70-persistent-net.rules": "old card\n",
    "/etc/fstab": "LABEL=root / ext4 defaults 0 1\n",
    "/usr/bin/cloud-init": "#!/bin/sh\n",
    "/usr/bin/ssh-keygen": "#!/bin/sh\n",
    "/var/lib/cloud/instance/user-data.txt": "old user data\n",
    "/var/lib/dhcp/dhclient.leases": "old lease\n",
}


def make_disk(place: Path, files: Mapping[str, str] = FILES, size_mib: int = 64) -> Path:
    """A raw file: GPT, and an ext4 with these files up to the end."""
    root = place / "root"
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    disk = place / "disk.raw"
    disk.touch()
    with disk.open("r+b") as stream:
        stream.truncate(size_mib * MIB)
    subprocess.run(["sfdisk", "--quiet", disk], input=TABLE, text=True, check=True)
    size = (size_mib - 1) * MIB - START
    options = ["-F", "-q", "-L", "root", "-d", root, "-E", f"offset={START},nodiscard"]
    subprocess.run(["mkfs.ext4", *map(str, options), str(disk), f"{size // 1024}k"], check=True)
    return disk


class Disk:
    """What is on a volume that nobody has open, read by debugfs; its root partition begins at `start`."""

    def __init__(self, pool: StoragePool, volume: str, start: int = START) -> None:
        self._pool, self._volume, self._start = pool, volume, start

    def read(self, name: str) -> str | None:
        """A file of the root file system; None when it is not there."""
        done = self._debugfs(f"cat {name}")
        return None if "File not found" in done.stderr else done.stdout

    def root_mib(self) -> int:
        """Size of the root file system."""
        lines = self._debugfs("show_super_stats -h").stdout.splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(found["Block count"]) * int(found["Block size"]) // MIB

    def table(self) -> list[str]:
        """The partition table, a line a partition; fails when sfdisk finds anything wrong with it."""
        with self._pool.open_device(self._volume, read_only=True) as device:
            checked = subprocess.run(["sfdisk", "--verify", device.path], capture_output=True, text=True)
            assert checked.returncode == 0 and "No errors detected" in checked.stdout, checked
            assert not checked.stderr, checked
            shown = subprocess.check_output(["sfdisk", "--dump", device.path], text=True)
        return [line.partition(" : ")[2] for line in shown.splitlines() if " : " in line]

    def check(self) -> None:
        """Fail unless the root file system is whole."""
        with self._pool.open_device(self._volume, read_only=True) as device:
            subprocess.run(
                ["e2fsck", "-fn", f"{device.path}?offset={self._start}"], check=True, capture_output=True
            )

    def _debugfs(self, request: str) -> "subprocess.CompletedProcess[str]":
        with self._pool.open_device(self._volume, read_only=True) as device:
            argv = ["debugfs", "-R", request, f"{device.path}?offset={self._start}"]
            return subprocess.run(argv, capture_output=True, text=True, check=True)


def digest(pool: StoragePool, volume: str) -> str:
    """Of everything on a volume."""
    content = hashlib.sha256()
    for part in pool.export_stream(volume):
        content.update(part)
    return content.hexdigest()
