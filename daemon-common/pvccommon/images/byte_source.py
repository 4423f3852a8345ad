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


def drain(source: ByteSource) -> int:
    """Read to the end and count; nothing is kept."""
    count = 0
    while piece := source.read(PIECE_BYTES):
        count += len(piece)
    return count
