"""Reading exactly as much as is needed from streams that give what they like."""

from pvccommon.storage.pool import ByteSource

PIECE_BYTES = 1024 * 1024


def read_fully(source: ByteSource, length: int) -> bytes:
    """`length` bytes, fewer only when the stream ends."""
    data = source.read(length)
    if len(data) == length or not data:
        return data
    parts = [data]
    missing = length - len(data)
    while missing > 0:
        data = source.read(missing)
        if not data:
            break
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


class Peeked:
    """A stream whose beginning was looked at: `head` is that, and comes again by reading."""

    def __init__(self, source: ByteSource, length: int) -> None:
        self.head = read_fully(source, length)
        self._source = source
        self._left = self.head

    def read(self, length: int, /) -> bytes:
        """The next bytes, at most `length`."""
        data, self._left = self._left[:length], self._left[length:]
        return data or self._source.read(length)


def drain(source: ByteSource) -> int:
    """Read to the end and count; nothing is kept."""
    count = 0
    while piece := source.read(PIECE_BYTES):
        count += len(piece)
    return count
