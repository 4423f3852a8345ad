"""VHDX. [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", little endian."""

import struct
from array import array
from collections.abc import Iterator
from functools import cache
from typing import Final
from uuid import UUID

from pvccommon.images.inspection import CONVERT_HINT, PIECE_BYTES, ImageInfo, Inspection, size_text
from pvccommon.images.limits import KIB, MIB

MAGIC: Final = b"vhdxfile"
HEADERS: Final = (64 * KIB, 128 * KIB)
HEADER_BYTES: Final = 4 * KIB
REGION_TABLES: Final = (192 * KIB, 256 * KIB)
REGION_TABLE_BYTES: Final = 64 * KIB
MAX_ENTRIES: Final = 2047
BAT = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
SECTOR_SIZE = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
KNOWN_ITEMS: Final = {
    FILE_PARAMETERS, VIRTUAL_SIZE, SECTOR_SIZE,
    UUID("BECA12AB-B2E6-4523-93EF-C309E000C746"),  # page 83 data
    UUID("CDA348C7-445D-4471-9CC9-E9885251C556"),  # physical sector size
}  # fmt: skip
PARENT_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
HAS_PARENT: Final = 2
BLOCK_PRESENT, BLOCK_PARTLY_PRESENT = 6, 7
REQUIRED: Final = 1


def inspect_vhdx(image: Inspection) -> ImageInfo:
    """Raises WrongInput: parents, a log to replay, wrong checksums, regions or blocks outside the file."""
    image.check_magic("VHDX", image.reader.read_at(0, 8), MAGIC)
    _check_headers(image)
    regions = dict(_regions(image))
    if BAT not in regions or METADATA not in regions:
        image.refuse("the VHDX has no block table or no metadata")
    items = _metadata(image, *regions[METADATA])
    block, flags = struct.unpack("<II", items[FILE_PARAMETERS][:8])
    (size,) = struct.unpack("<Q", items[VIRTUAL_SIZE][:8])
    (sector,) = struct.unpack("<I", items[SECTOR_SIZE][:4])
    if flags & HAS_PARENT:
        image.refuse("the VHDX is a differencing disk, which stands on another file", CONVERT_HINT)
    if not MIB <= block <= 256 * MIB or block & (block - 1):
        image.refuse(f"the VHDX has blocks of {block} bytes; a power of two from 1 to 256 MiB is expected")
    if sector not in (512, 4096) or size % sector:
        image.refuse(f"the VHDX has sectors of {sector} bytes and a size of {size}")
    image.check_virtual_size(size)
    image.features += [f"block {size_text(block)}", f"sector {sector} bytes"]
    _check_blocks(image, *regions[BAT], size=size, block=block, sector=sector)
    return image.info("vhdx", "dynamic", size)


def _check_headers(image: Inspection) -> None:
    """The newer of two headers counts; a log that it names would have to be replayed."""
    valid = []
    for offset in HEADERS:
        data = image.read("VHDX header", offset, HEADER_BYTES)
        if data.startswith(b"head") and _sum_is_right(data):
            valid.append((int.from_bytes(data[8:16], "little"), data))
    if not valid:
        image.refuse("the VHDX has no valid header; it is damaged")
    _, newest = max(valid, key=lambda pair: pair[0])
    if any(newest[48:64]):
        image.refuse(
            "the VHDX was not closed cleanly: its log would have to be replayed",
            "open and close it once where it was made, or convert it",
        )


def _regions(image: Inspection) -> Iterator[tuple[UUID, tuple[int, int]]]:
    """Offset and length by id, of the first valid region table."""
    for place in REGION_TABLES:
        data = image.read("VHDX region table", place, REGION_TABLE_BYTES)
        if data.startswith(b"regi") and _sum_is_right(data):
            break
    else:
        image.refuse("the VHDX has no valid region table; it is damaged")
    count = int.from_bytes(data[8:12], "little")
    if count > MAX_ENTRIES:
        image.refuse(f"the VHDX has {count} regions")
    for index in range(count):
        entry = data[16 + 32 * index : 48 + 32 * index]
        identity = UUID(bytes_le=entry[:16])
        offset, length, required = struct.unpack("<QII", entry[16:])
        if identity not in (BAT, METADATA):
            if required & REQUIRED:
                image.refuse("the VHDX needs a region that is not known")
            continue
        if offset < MIB or offset % MIB or length % MIB:
            image.refuse(f"a region of the VHDX is at {offset}, where none can be")
        image.check_inside("VHDX region", offset, length)
        yield identity, (offset, length)


def _metadata(image: Inspection, offset: int, length: int) -> dict[UUID, bytes]:
    """The items that decide; each begins with what is read of it."""
    table = image.read("VHDX metadata table", offset, min(length, 64 * KIB))
    image.check_magic("a VHDX with metadata", table, b"metadata")
    count = int.from_bytes(table[10:12], "little")
    if count > MAX_ENTRIES or 32 + 32 * count > len(table):
        image.refuse(f"the VHDX has {count} metadata items")
    found: dict[UUID, bytes] = {}
    for index in range(count):
        entry = table[32 + 32 * index : 64 + 32 * index]
        identity = UUID(bytes_le=entry[:16])
        place, size, flags = struct.unpack("<III", entry[16:28])
        if identity == PARENT_LOCATOR:
            image.refuse("the VHDX names a parent, another file", CONVERT_HINT)
        if identity not in KNOWN_ITEMS:
            if flags & 4:
                image.refuse("the VHDX needs metadata that is not known")
            continue
        if place + size > length:
            image.refuse("metadata of the VHDX lies outside its region; it is damaged")
        found[identity] = image.read("VHDX metadata", offset + place, min(size, 16))
    for identity, size in ((FILE_PARAMETERS, 8), (VIRTUAL_SIZE, 8), (SECTOR_SIZE, 4)):
        if len(found.get(identity, b"")) < size:
            image.refuse("the VHDX lacks metadata; it is damaged")
    return found


def _check_blocks(image: Inspection, offset: int, length: int, *, size: int, block: int, sector: int) -> None:
    """All blocks inside the file, and room there for each.

    After each `ratio` blocks the table has one entry for a bitmap.
    """
    ratio = 2**23 * sector // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ratio
    if 8 * entries > length:
        image.refuse(f"the VHDX has a block table of {length // 8} entries; its size needs {entries}")
    last = image.reader.size_bytes
    used = 0
    for start in range(0, 8 * entries, PIECE_BYTES):
        piece = array(
            "Q", image.read("VHDX block table", offset + start, min(PIECE_BYTES, 8 * entries - start))
        )
        for entry in piece:
            if entry & 7 == BLOCK_PARTLY_PRESENT:
                image.refuse("the VHDX has blocks that are partly in another file", CONVERT_HINT)
            if entry & 7 == BLOCK_PRESENT:
                used += 1
                if (entry >> 20 << 20) + block > last:
                    image.refuse("a block of the VHDX lies outside the file; it is damaged or cut off")
        image.check_places("VHDX blocks", used, block)


def _sum_is_right(data: bytes) -> bool:
    """CRC-32C over the structure, with the checksum itself as zeros."""
    return crc32c(data[:4] + bytes(4) + data[8:]) == int.from_bytes(data[4:8], "little")


def crc32c(data: bytes) -> int:
    """Castagnoli's; the standard library only has the other one."""
    table, value = _crc32c_table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc32c_table() -> tuple[int, ...]:
    values = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        values.append(value)
    return tuple(values)
