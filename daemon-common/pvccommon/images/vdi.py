"""VDI, VirtualBox' own format, version 1.1, little endian (QEMU's block/vdi.c describes it at its top)."""

import struct
from array import array
from typing import Final

from pvccommon.images.inspection import CONVERT_HINT, PIECE_BYTES, ImageInfo, Inspection, size_text
from pvccommon.images.limits import MIB

SIGNATURE: Final = b"\x7f\x10\xda\xbe"
HEADER_BYTES: Final = 512
DYNAMIC, STATIC = 1, 2
TYPES: Final = {DYNAMIC: "dynamic", STATIC: "static"}
NO_BLOCK: Final = 0xFFFFFFFE  # and above: never written, or discarded

_HEADER = struct.Struct("<64s4sIIII256sIIIIIIIQIIII16s16s16s16s")


def inspect_vdi(image: Inspection) -> ImageInfo:
    """Raises WrongInput: snapshots and differencing images, tables or blocks outside the file."""
    data = image.reader.read_at(0, HEADER_BYTES)
    image.check_magic("VDI", data[64:], SIGNATURE)
    if len(data) < HEADER_BYTES:
        image.refuse("the VDI header lies outside the file; it is damaged or cut off")
    (
        _, _, version, _, kind, _, _, table, blocks_at, _, _, _, sector, _, size, block, extra, blocks,
        allocated, _, _, link, parent,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if version != 0x00010001:
        image.refuse(f"the VDI has the version {version >> 16}.{version & 0xFFFF}; 1.1 is read")
    if kind not in TYPES:
        image.refuse(f"the VDI stands on another image: it is of type {kind}", CONVERT_HINT)
    if any(link) or any(parent):
        image.refuse("the VDI stands on another image: it names a parent", CONVERT_HINT)
    if block != MIB or extra or sector != 512:
        image.refuse(f"the VDI has blocks of {block} bytes and sectors of {sector}; 1 MiB and 512 are read")
    image.check_virtual_size(size)
    if blocks != -(-size // block) or allocated > blocks:
        image.refuse(f"the VDI has {blocks} blocks, {allocated} in use; its size needs {-(-size // block)}")
    image.features.append(f"block {size_text(block)}")
    image.check_inside("VDI block table", table, 4 * blocks)
    _check_blocks(image, table, blocks, blocks_at, block)
    return image.info("vdi", TYPES[kind], size)


def _check_blocks(image: Inspection, table: int, blocks: int, start: int, block: int) -> None:
    """The last block of the file may be cut short."""
    most = -(-(image.reader.size_bytes - start) // block)
    for offset in range(0, 4 * blocks, PIECE_BYTES):
        piece = array(
            "I", image.read("VDI block table", table + offset, min(PIECE_BYTES, 4 * blocks - offset))
        )
        if any(most <= entry < NO_BLOCK for entry in piece):
            image.refuse("a block of the VDI lies outside the file; it is damaged or cut off")
