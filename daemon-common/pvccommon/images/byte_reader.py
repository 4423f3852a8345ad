"""Reading images at any place: from a file, or from the first bytes of a stream."""

import os
from typing import Protocol

from pvccommon.errors import WrongInput


class ByteReader(Protocol):
    """Random access to an image."""

    @property
    def size_bytes(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the image."""
        ...


class FileReader:
    """An open file; closing it is its owner's business."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = os.lseek(fd, 0, os.SEEK_END)

    def read_at(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            part = os.pread(self._fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)


class PrefixReader:
    """The first bytes of an image whose size is known. Raises WrongInput when more is needed."""

    def __init__(self, prefix: bytes, size_bytes: int) -> None:
        self._prefix = prefix
        self.size_bytes = size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size_bytes)
        if end > len(self._prefix):
            raise WrongInput(
                "inspect the image",
                f"byte {end} is needed, and only the first {len(self._prefix)} are here",
                "its tables are not at its beginning: upload it as a whole",
            )
        return self._prefix[offset:end]
