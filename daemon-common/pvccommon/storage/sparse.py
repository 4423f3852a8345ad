"""Raw content to and from sparse files, in bounded memory."""

import errno
import os
from collections.abc import Callable, Iterator

from pvccommon.errors import WrongInput
from pvccommon.storage.pool import ByteSource, check_piece

PIECE_BYTES = 1024 * 1024
BLOCK_BYTES = 4096
SEND_BYTES = 8 * 1024 * 1024
ZERO_PIECE = bytes(PIECE_BYTES)
ZERO_BLOCK = bytes(BLOCK_BYTES)


class FileWriter:
    """The content of a new sparse file, piece by piece.

    What was written goes to the disk while more comes, and leaves the page cache then: at the end there is
    little to wait for, and nothing of use was pushed out of it.
    """

    def __init__(self, fd: int, size_bytes: int, what: str) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._what = what
        self._unsent_bytes = 0

    def write(self, offset: int, data: bytes, /) -> None:
        """Raises WrongInput for a piece that is not within the file."""
        check_piece(self._what, offset, len(data), self._size_bytes)
        write_all(self._fd, memoryview(data), offset)
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= SEND_BYTES:
            # Of the whole file: what is on its way, or gone, costs nothing. posix_fadvise(2): dirty pages are
            # not dropped; Linux begins to write them.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self._unsent_bytes = 0


def data_runs(stream: ByteSource, size_bytes: int, what: str) -> Iterator[tuple[int, memoryview]]:
    """Offset and content of what is not zero in exactly `size_bytes` of a stream, at most a piece at a time.

    Raises WrongInput for a stream of another length.
    """
    offset = 0
    while offset < size_bytes:
        piece = _read_piece(stream, min(PIECE_BYTES, size_bytes - offset))
        if not piece:
            raise WrongInput(what, f"the stream ended after {offset} of {size_bytes} bytes")
        if piece != ZERO_PIECE[: len(piece)]:
            for start, end in data_blocks(piece, len(piece)):
                yield offset + start, memoryview(piece)[start:end]
        offset += len(piece)
    if stream.read(1):
        raise WrongInput(what, f"the stream is longer than the {size_bytes} bytes announced")


def overwrite(
    stream: ByteSource,
    size_bytes: int,
    volume_bytes: int,
    what: str,
    *,
    write: Callable[[memoryview, int], None],
    clear: Callable[[int, int], None],
) -> None:
    """Write exactly `size_bytes` of a stream over a volume's content, and `clear(offset, length)` what it has
    no data for, up to the volume's end.

    Raises WrongInput for a stream of another length; what came before is written then.
    """
    end = 0
    for offset, data in data_runs(stream, size_bytes, what):
        if offset > end:
            clear(end, offset - end)
        write(data, offset)
        end = offset + len(data)
    if volume_bytes > end:
        clear(end, volume_bytes - end)


def read_pieces(fd: int, size_bytes: int) -> Iterator[bytes]:
    """The content of a file in pieces; holes are not read."""
    if os.fstat(fd).st_size < size_bytes:
        raise OSError(errno.EIO, f"the file ends before {size_bytes} bytes")
    offset = 0
    while offset < size_bytes:
        length = min(PIECE_BYTES, size_bytes - offset)
        hole = _data_starts(fd, offset, size_bytes) >= offset + length
        piece = ZERO_PIECE[:length] if hole else os.pread(fd, length, offset)
        if not piece:
            raise OSError(errno.EIO, f"the file ends before {size_bytes} bytes")
        yield piece
        offset += len(piece)


def _read_piece(stream: ByteSource, length: int) -> bytes:
    """As much as asked for unless the stream ends: short pieces would hide blocks of zeros."""
    parts: list[bytes] = []
    while length > 0:
        part = stream.read(length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def data_blocks(piece: bytes | bytearray, length: int) -> Iterator[tuple[int, int]]:
    """Where the first `length` bytes of a piece are not zero, in whole blocks, neighbours together."""
    start = 0
    # Only blocks that begin with a zero need a look, and those are found without a loop of Python's.
    first_bytes = piece[:length:BLOCK_BYTES]
    number = first_bytes.find(0)
    while number >= 0:
        position = number * BLOCK_BYTES
        if piece.startswith(ZERO_BLOCK[: length - position], position):
            if position > start:
                yield start, position
            start = position + BLOCK_BYTES
        number = first_bytes.find(0, number + 1)
    if start < length:
        yield start, length


def write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _data_starts(fd: int, offset: int, size_bytes: int) -> int:
    """Where the next data begins, `size_bytes` when only a hole follows."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return size_bytes
        raise
