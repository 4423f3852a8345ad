"""What tests of storage pools share."""

import io
import os
import subprocess
import tempfile
from pathlib import Path

from pvccommon.storage import DiskSource, StoragePool, Volume

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
