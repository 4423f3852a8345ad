"""Sparse VMDK files: monolithicSparse and streamOptimized ("Virtual Disk Format 5.0", VMware)."""

from array import array
from typing import Final

from pvccommon.images.inspection import PIECE_BYTES, WHAT, ImageInfo, Inspection, size_text
from pvccommon.images.vmdk_descriptor import parse_descriptor
from pvccommon.images.vmdk_header import (
    AT_END,
    SECTOR_BYTES,
    TABLE_BYTES,
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
    """Every grain table inside the file. What they point to is checked at conversion."""
    if header.directory == AT_END:
        image.refuse("the VMDK has no grain directory")
    start, length = header.directory * SECTOR_BYTES, 4 * header.tables
    image.check_inside("VMDK grain directory", start, length)
    last = image.reader.size_bytes - TABLE_BYTES
    for offset in range(0, length, PIECE_BYTES):
        piece = array(
            "I", image.read("VMDK grain directory", start + offset, min(PIECE_BYTES, length - offset))
        )
        if max(piece) * SECTOR_BYTES > last:
            image.refuse("a grain table of the VMDK lies outside the file; it is damaged or cut off")
