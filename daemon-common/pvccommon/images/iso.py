"""CD-ROM images: a stream that is refused unless it holds an ISO 9660 file system (ECMA-119, 8.4)."""

from typing import Final

from pvccommon.errors import WrongInput
from pvccommon.images.byte_source import read_fully
from pvccommon.storage.pool import ByteSource

DESCRIPTOR_OFFSET: Final = 16 * 2048
PRIMARY: Final = b"\x01CD001\x01"


class IsoStream:
    """The stream itself, its beginning looked at first. Raises WrongInput."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._head = read_fully(source, DESCRIPTOR_OFFSET + len(PRIMARY))
        if self._head[DESCRIPTOR_OFFSET:] != PRIMARY:
            raise WrongInput("read the ISO image", "it has no ISO 9660 volume descriptor")

    def read(self, length: int, /) -> bytes:
        """The next bytes, at most `length`."""
        data, self._head = self._head[:length], self._head[length:]
        return data or self._source.read(length)
