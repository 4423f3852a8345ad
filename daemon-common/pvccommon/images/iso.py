"""CD-ROM images as streams: refused unless they hold an ISO 9660 file system that is all there."""

from typing import Final

from pvccommon.images.byte_reader import PrefixReader
from pvccommon.images.byte_source import Peeked
from pvccommon.images.inspection import Inspection
from pvccommon.images.iso9660 import FIRST_DESCRIPTOR, MAX_DESCRIPTORS, SECTOR_BYTES, find_volume
from pvccommon.images.limits import DEFAULT_LIMITS
from pvccommon.storage.pool import ByteSource

HEAD_BYTES: Final = (FIRST_DESCRIPTOR + MAX_DESCRIPTORS) * SECTOR_BYTES


def iso_stream(source: ByteSource, size_bytes: int) -> Peeked:
    """The stream itself, its descriptors looked at. Raises WrongInput: no such file system, or cut off."""
    stream = Peeked(source, HEAD_BYTES)
    reader = PrefixReader(stream.head, min(size_bytes, len(stream.head)))
    find_volume(Inspection(reader, DEFAULT_LIMITS), size_bytes)
    return stream
