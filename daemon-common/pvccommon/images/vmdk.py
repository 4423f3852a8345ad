"""Sparse VMDK files: monolithicSparse and streamOptimized ("Virtual Disk Format 5.0", VMware)."""

from array import array
from typing import Final

from pvccommon.images.inspection import PIECE_BYTES, WHAT, ImageInfo, Inspection, size_text
from pvccommon.images.vmdk_descriptor import parse_descriptor
from pvccommon.images.vmdk_header import (
    AT_END,
    COMPRESSED,
    SECTOR_BYTES,
    TABLE_BYTES,
    TABLE_ENTRIES,
    ZEROED_GRAINS,
    SparseHeader,
    parse_sparse_header,
)

END_SECTORS: Final = 2  # footer and end mark


def inspect_vmdk(image: Inspection) -> ImageInfo:
    """Raises WrongInput: descriptor files, other extents, parents, encryption, tables outside the file."""
    header = parse_sparse_header(WHAT, image.reader.read_at(0, SECTOR_BYTES), image.limits)
    text = image.read(
        "VMDK descriptor", header.descriptor * SECTOR_BYTES, header.descriptor_size * SECTOR_BYTES
    )
    descriptor = parse_descriptor(WHAT, text)
    if descriptor.sectors != header.capacity:
        image.refuse("the VMDK's descriptor and header give different sizes")
    if (descriptor.create_type == "streamOptimized") != header.is_stream:
        image.refuse("the VMDK's descriptor and header give different types")
    image.features.append(f"grain {size_text(header.grain_bytes)}")
    if descriptor.adapter:
        image.features.append(f"adapter {descriptor.adapter[:40]}")
    if header.unclean:
        image.warnings.append("the VMDK was not closed cleanly")
    # A stream's tables are checked while it is decoded; those of a file have to be found.
    if not header.is_stream:
        _check_directory(image, header)
    elif header.directory == AT_END:
        image.features.append("tables at the end")
    return image.info("vmdk", descriptor.create_type, header.virtual_bytes)


def _check_directory(image: Inspection, header: SparseHeader) -> None:
    """Every grain table inside the file, and room for their grains. QEMU checks where these lie."""
    if header.directory == AT_END:
        image.refuse("the VMDK has no grain directory")
    start, length = header.directory * SECTOR_BYTES, 4 * header.tables
    image.check_inside("VMDK grain directory", start, length)
    last = image.reader.size_bytes - TABLE_BYTES
    # A compressed grain takes a sector or more.
    grain_bytes = SECTOR_BYTES if header.flags & COMPRESSED else header.grain_bytes
    tables = grains = 0
    for offset in range(0, length, PIECE_BYTES):
        piece = array(
            "I", image.read("VMDK grain directory", start + offset, min(PIECE_BYTES, length - offset))
        )
        if max(piece) * SECTOR_BYTES > last:
            image.refuse("a grain table of the VMDK lies outside the file; it is damaged or cut off")
        tables += len(piece) - piece.count(0)
        image.check_places("VMDK grain tables", tables, TABLE_BYTES)
        image.check_tables("VMDK grain tables", tables * TABLE_BYTES)
        for sector in filter(None, piece):
            grains += _used_grains(image, header, sector)
            image.check_places("VMDK grains", grains, grain_bytes)


def _used_grains(image: Inspection, header: SparseHeader, sector: int) -> int:
    """How many entries of the table there have a place in the file: 0 is never written, 1 may mean zeros."""
    table = array("I", image.read("VMDK grain table", sector * SECTOR_BYTES, TABLE_BYTES))
    zeroed = table.count(1) if header.flags & ZEROED_GRAINS else 0
    return TABLE_ENTRIES - table.count(0) - zeroed
