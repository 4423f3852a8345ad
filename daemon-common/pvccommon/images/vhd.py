"""VHD (QEMU's `vpc`): fixed and dynamic disks. Microsoft's "Virtual Hard Disk Image Format", big endian."""

import struct
from array import array
from typing import Final

from pvccommon.images.inspection import CONVERT_HINT, PIECE_BYTES, ImageInfo, Inspection, size_text
from pvccommon.images.limits import KIB, MIB

FOOTER_BYTES, DYNAMIC_BYTES = 512, 1024
MAGIC, DYNAMIC_MAGIC = b"conectix", b"cxsparse"
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
NO_BLOCK: Final = 0xFFFFFFFF
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 512 * KIB, 256 * MIB

_FOOTER = struct.Struct(">8sIIQI4sI4sQQIII")
_DYNAMIC = struct.Struct(">8sQQIIII")


def inspect_vhd(image: Inspection) -> ImageInfo:
    """Raises WrongInput: differencing disks, wrong checksums, tables outside the file."""
    size = image.reader.size_bytes
    head = image.reader.read_at(0, FOOTER_BYTES)
    at_start = head.startswith(MAGIC)
    footer = head if at_start else image.reader.read_at(max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    image.check_magic("VHD", footer, MAGIC)
    if len(footer) < FOOTER_BYTES:
        image.refuse("the VHD footer lies outside the file; it is damaged or cut off")
    _, _, version, data_offset, _, creator, _, _, _, current, _, kind, _ = _FOOTER.unpack_from(footer)
    _check_sum(image, "footer", footer, 64)
    if version >> 16 != 1:
        image.refuse(f"the VHD has the unknown version {version >> 16}")
    if kind == DIFFERENCING:
        image.refuse("the VHD is a differencing disk, which stands on another file", CONVERT_HINT)
    if kind not in (FIXED, DYNAMIC):
        image.refuse(f"the VHD is of the unknown type {kind}")
    image.check_virtual_size(current)
    image.features.append(f"creator {creator.decode('ascii', 'replace').strip() or 'unknown'!r}")
    if kind == FIXED:
        image.check_inside("VHD data", 0, current + FOOTER_BYTES)
        return image.info("vhd", "fixed", current)
    if not at_start:
        image.refuse("the dynamic VHD has no copy of its footer at its beginning; it is damaged")
    _check_dynamic(image, data_offset, current)
    return image.info("vhd", "dynamic", current)


def _check_sum(image: Inspection, name: str, data: bytes, place: int) -> None:
    """The complement of the sum of all bytes, with the field itself as zeros."""
    found = int.from_bytes(data[place : place + 4], "big")
    if found != ~(sum(data) - sum(data[place : place + 4])) & 0xFFFFFFFF:
        image.refuse(f"the VHD {name} has a wrong checksum; it is damaged")


def _check_dynamic(image: Inspection, offset: int, current: int) -> None:
    header = image.read("VHD header", offset, DYNAMIC_BYTES)
    image.check_magic("a dynamic VHD", header, DYNAMIC_MAGIC)
    _check_sum(image, "header", header, 36)
    _, _, table, _version, entries, block, _ = _DYNAMIC.unpack_from(header)
    if not MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES or block & (block - 1):
        image.refuse(
            f"the VHD has blocks of {block} bytes; a power of two from 512 KiB to 256 MiB is sensible"
        )
    needed = -(-current // block)
    if entries < needed:
        image.refuse(f"the VHD has a table of {entries} blocks; its size needs {needed}")
    image.features.append(f"block {size_text(block)}")
    image.check_inside("VHD block table", table, 4 * entries)
    _check_blocks(image, table, needed, block)


def _check_blocks(image: Inspection, table: int, entries: int, block: int) -> None:
    """All blocks inside the file, and room there for each."""
    last = image.reader.size_bytes // 512
    used = 0
    for start in range(0, 4 * entries, PIECE_BYTES):
        piece = array(
            "I", image.read("VHD block table", table + start, min(PIECE_BYTES, 4 * entries - start))
        )
        piece.byteswap()
        if any(last <= entry < NO_BLOCK for entry in piece):
            image.refuse("a block of the VHD lies outside the file; it is damaged or cut off")
        used += len(piece) - piece.count(NO_BLOCK)
        image.check_places("VHD blocks", used, block)
