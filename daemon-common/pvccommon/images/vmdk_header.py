"""The first sector of a sparse VMDK: a `SparseExtentHeader`, little endian ("Virtual Disk Format 5.0")."""

import struct
from dataclasses import dataclass
from typing import Final, NoReturn

from pvccommon.errors import WrongInput
from pvccommon.images.limits import Limits

MAGIC: Final = b"KDMV"
SECTOR_BYTES: Final = 512
TABLE_ENTRIES: Final = 512
TABLE_BYTES: Final = 4 * TABLE_ENTRIES
# Directory at the end: the footer, a second header, says where.
AT_END: Final = 2**64 - 1

NEWLINE_TEST, REDUNDANT, ZEROED_GRAINS, COMPRESSED, MARKERS = 1, 2, 4, 1 << 16, 1 << 17
DEFLATE: Final = 1
LINE_ENDS: Final = b"\n \r\n"
MAX_DESCRIPTOR_SECTORS: Final = 128
MIN_GRAIN_SECTORS, MAX_GRAIN_SECTORS = 8, 2048
CONVERT_HINT: Final = "convert it: qemu-img convert -O vmdk -o subformat=streamOptimized OLD NEW"

_LAYOUT = struct.Struct("<4sIIQQQQIQQQB4sH")

# Files that are called .vmdk, too.
_OTHER_MAGICS: Final = (
    (b"# Disk DescriptorFile", "is only a descriptor, which points to other files"),
    (b"COWD", "is an ESX server sparse extent"),
    (b"\xbe\xba\xfe\xca", "is an SESparse extent"),
)


@dataclass(frozen=True)
class SparseHeader:
    """Offsets and sizes in sectors."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    directory: int
    overhead: int
    unclean: bool
    compression: int

    @property
    def virtual_bytes(self) -> int:
        return self.capacity * SECTOR_BYTES

    @property
    def grain_bytes(self) -> int:
        return self.grain * SECTOR_BYTES

    @property
    def tables(self) -> int:
        """Number of grain tables, that is of entries in the directory."""
        return -(-self.capacity // (self.grain * TABLE_ENTRIES))

    @property
    def is_stream(self) -> bool:
        return bool(self.flags & COMPRESSED and self.flags & MARKERS)


def begins_stream(beginning: bytes) -> bool:
    """Whether the first `SECTOR_BYTES` of a file are those of a VMDK stream, going by its flags alone."""
    flags = int.from_bytes(beginning[8:12], "little")
    return beginning[:4] == MAGIC and bool(flags & COMPRESSED and flags & MARKERS)


def parse_sparse_header(what: str, block: bytes, limits: Limits) -> SparseHeader:
    """Read and check a header. Raises WrongInput with the reason."""
    for magic, why in _OTHER_MAGICS:
        if block.startswith(magic):
            _refuse(what, f"the image {why}", CONVERT_HINT)
    if len(block) < SECTOR_BYTES or block[:4] != MAGIC:
        _refuse(what, "the image is not a VMDK: wrong magic")
    (
        _, version, flags, capacity, grain, descriptor, descriptor_size, entries, _redundant, directory,
        overhead, unclean, line_ends, compression,
    ) = _LAYOUT.unpack_from(block)  # fmt: skip
    header = SparseHeader(
        version,
        flags,
        capacity,
        grain,
        descriptor,
        descriptor_size,
        directory,
        overhead,
        bool(unclean),
        compression,
    )
    if not 1 <= version <= 3:
        _refuse(what, f"the VMDK has the unknown version {version}")
    if flags & NEWLINE_TEST and line_ends != LINE_ENDS:
        _refuse(what, "the VMDK was damaged by a transfer as text")
    if entries != TABLE_ENTRIES:
        _refuse(what, f"the VMDK has grain tables of {entries} entries instead of {TABLE_ENTRIES}")
    _check_sizes(what, header, limits)
    return header


def _refuse(what: str, why: str, hint: str = "") -> NoReturn:
    raise WrongInput(what, why, hint)


def _check_sizes(what: str, header: SparseHeader, limits: Limits) -> None:
    grain = header.grain
    if not MIN_GRAIN_SECTORS <= grain <= MAX_GRAIN_SECTORS or grain & (grain - 1):
        _refuse(what, f"the VMDK has grains of {grain} sectors; a power of two from 8 to 2048 is expected")
    if header.capacity == 0:
        _refuse(what, "the VMDK has no capacity")
    if header.virtual_bytes > limits.virtual_bytes:
        _refuse(what, f"its virtual size, {header.virtual_bytes} bytes, is over {limits.virtual_bytes}")
    if not 0 < header.descriptor_size <= MAX_DESCRIPTOR_SECTORS or header.descriptor == 0:
        _refuse(what, "the VMDK has no embedded descriptor of a sensible size")
    if header.flags & COMPRESSED and header.compression != DEFLATE:
        _refuse(what, f"the VMDK has the unknown compression {header.compression}")
