"""The file that is uploaded: read piece by piece, and recognised again after a break."""

import hashlib
import os
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from pvc.errors import CliError
from pvc.multipart import size_of

EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileIdentity:
    """What tells whether a file is still the same. `edges_sha256`: of its first and last MiB."""

    size_bytes: int
    mtime_ns: int
    inode: int
    edges_sha256: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class UploadSource:
    """A regular file or block device opened without buffer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = str(file.name)
        self.size_bytes = size_of(file)
        self._mtime_ns = os.fstat(file.fileno()).st_mtime_ns

    def identity(self) -> FileIdentity:
        size = self.size_bytes
        digest = hashlib.sha256(self.read_at(0, EDGE_BYTES))
        digest.update(self.read_at(max(0, size - EDGE_BYTES), EDGE_BYTES))
        inode = os.fstat(self._file.fileno()).st_ino
        return FileIdentity(size, self._mtime_ns, inode, digest.hexdigest())

    def read_at(self, offset: int, limit: int) -> bytes:
        """`limit` bytes, or what is left. Raises CliError when the file is not what it was."""
        wanted = min(limit, self.size_bytes - offset)
        pieces: list[bytes] = []
        missing = wanted
        try:
            while missing:
                piece = os.pread(self._file.fileno(), missing, offset + wanted - missing)
                if not piece:
                    break
                pieces.append(piece)
                missing -= len(piece)
        except OSError as error:
            raise CliError(
                f"cannot read {self.name}", why=error.strerror or str(error), kind="environment"
            ) from error
        self._check_unchanged(is_short=missing > 0)
        return b"".join(pieces)

    def _check_unchanged(self, *, is_short: bool) -> None:
        size_now = size_of(self._file)
        if is_short or size_now != self.size_bytes:
            raise FileChanged(self.name, f"it had {self.size_bytes} bytes, and has {size_now}")
        if os.fstat(self._file.fileno()).st_mtime_ns != self._mtime_ns:
            raise FileChanged(self.name, "something writes to it")


class FileChanged(CliError):
    """The file is not what it was when the upload began, so what has arrived is worth nothing."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"{name} changed while it was uploaded",
            why=why,
            hint="upload it again when nobody writes to it any more",
            kind="busy-retry",
        )
