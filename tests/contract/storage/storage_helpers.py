"""What tests of storage pools share."""

import io
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from devstack import Stack, ceph
from pvccommon.errors import WrongState
from pvccommon.storage import DiskSource, StoragePool, Volume
from pvccommon.storage.ceph import CephAccount, connect

MIB = 1024**2
GIB = 1024**3
SIZE = 2 * MIB
TEXT = b"generic part".ljust(4096, b".") + bytes(4096) + b"end".ljust(4096, b"!")


def fill(pool: StoragePool, name: str, data: bytes = TEXT, size_bytes: int = SIZE) -> Volume:
    """A volume that begins with some data."""
    return pool.import_stream(name, io.BytesIO(data.ljust(size_bytes, b"\0")), size_bytes)


def qemu_content(source: DiskSource) -> bytes:
    """The raw content of a file volume as QEMU reads it, believing the names in the file's own header."""
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "content")
        subprocess.run(
            ["qemu-img", "convert", "-f", source.format, "-O", "raw", source.path, target], check=True
        )
        return Path(target).read_bytes()


def everything_in(path: Path) -> list[str]:
    """What a pool's directory holds besides its frame."""
    found = (entry.relative_to(path) for entry in path.rglob("*"))
    return sorted(str(entry) for entry in found if str(entry) not in ("pool.lock", "volumes", "images"))


def rbd_account(stack: Stack) -> CephAccount:
    """How the node daemon of a stack reaches its Ceph."""
    conf, keyring = ceph.conf(stack.state), ceph.keyring(stack.state)
    return CephAccount(ceph.CLIENT, str(conf), str(keyring))


def rbd_command(stack: Stack, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Ceph's own tool, as the same user."""
    account = rbd_account(stack)
    options = [
        "--conf",
        account.conf,
        "--id",
        account.user,
        "--keyring",
        str(account.keyring),
        "-p",
        ceph.POOL,
    ]
    return subprocess.run(["rbd", *options, *words], check=True, capture_output=True)


def rbd_content(stack: Stack, name: str) -> bytes:
    return rbd_command(stack, "export", "--no-progress", name, "-").stdout


def everything_in_rbd(stack: Stack) -> list[str]:
    """The objects of the pool besides those that hold its directory."""
    ioctx = connect(rbd_account(stack)).pool(ceph.POOL)
    frame = ("rbd_directory", "rbd_info", "rbd_children", "rbd_trash")
    return sorted(found.key for found in ioctx.list_objects() if found.key not in frame)


def remove_everything(pool: StoragePool) -> None:
    """Delete all volumes, clones before what they were cloned from."""
    while volumes := pool.list_volumes():
        for volume in volumes:
            for snapshot in pool.list_snapshots(volume.name):
                if not snapshot.children:
                    pool.unprotect_snapshot(volume.name, snapshot.name)
            with suppress(WrongState):
                pool.delete_volume(volume.name)
