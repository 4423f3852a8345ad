"""Raw images: nothing to parse, and so nothing to trust; only hints that the format given is wrong."""

from typing import Final

from pvccommon.images.inspection import ImageInfo, Inspection

SECTOR_BYTES: Final = 512
OTHER_MAGICS: Final = (
    (b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"# Disk DescriptorFile", "vmdk"), (b"conectix", "vhd"),
    (b"vhdxfile", "vhdx"), (b"<<< ", "vdi"), (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
)  # fmt: skip


def inspect_raw(image: Inspection) -> ImageInfo:
    """The virtual size is that of the file, rounded up to whole sectors."""
    size = image.reader.size_bytes
    head = image.reader.read_at(0, SECTOR_BYTES)
    image.warnings += raw_warnings(head, size)
    if head[510:512] == b"\x55\xaa":
        image.features.append("boot record")
    return image.info("raw", "", -(-size // SECTOR_BYTES) * SECTOR_BYTES)


def raw_warnings(head: bytes, size_bytes: int) -> list[str]:
    """What speaks against an image being raw; `head` is its first sector."""
    found = [
        f"the image begins like {name}, and is taken as raw data all the same"
        for magic, name in OTHER_MAGICS
        if head.startswith(magic)
    ]
    if size_bytes % SECTOR_BYTES:
        found.append("the image is filled up with zeros to whole sectors")
    return found
