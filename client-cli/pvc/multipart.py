"""A multipart/form-data body with one file that is read from disk while it is sent.

The encoder of requests reads whole files into memory.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pvc.errors import CliError

CHUNK_BYTES = 256 * 1024


class FileBody:
    """The body's bytes by iterating, its exact length by `len()`: requests then sends Content-Length.

    `advance` hears how many bytes of the file were sent, `sent` when the body is out. It can be sent once.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        advance: Callable[[int], None] = lambda _: None,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        boundary = secrets.token_hex(16)
        self.size_bytes = size_of(file)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._file = file
        self._advance = advance
        self._sent = sent
        self._head = (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="file"; filename="filename"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + self.size_bytes + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        left = self.size_bytes
        while left:
            chunk = self._read(min(CHUNK_BYTES, left))
            yield chunk
            left -= len(chunk)
            self._advance(len(chunk))
        yield self._tail
        self._sent()

    def _read(self, limit: int) -> bytes:
        """At least one byte of the file: what was announced must come."""
        try:
            chunk = self._file.read(limit)
        except OSError as error:
            raise CliError(
                f"cannot read {self._file.name}", why=error.strerror or str(error), kind="environment"
            ) from error
        if not chunk:
            raise CliError(f"{self._file.name} became shorter while it was sent", kind="busy-retry")
        return chunk


def size_of(file: BinaryIO) -> int:
    """Bytes of a regular file or block device, whose own `st_size` is 0; leaves the position at its start."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size_bytes
