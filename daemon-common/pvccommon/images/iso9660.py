"""ISO 9660 images (ECMA-119), with El Torito boot records."""

from typing import Final

from pvccommon.images.inspection import ImageInfo, Inspection

SECTOR_BYTES: Final = 2048
FIRST_DESCRIPTOR: Final = 16
MAX_DESCRIPTORS: Final = 64
MAGIC: Final = b"CD001"
BOOT, PRIMARY, END = 0, 1, 255
EL_TORITO: Final = b"EL TORITO SPECIFICATION"
PLATFORMS: Final = {0: "BIOS", 0xEF: "UEFI"}
SECTION_HEADERS: Final = (0x90, 0x91)


def inspect_iso9660(image: Inspection) -> ImageInfo:
    """Raises WrongInput: no primary volume descriptor, or a volume larger than the file."""
    primary, catalog = find_volume(image, image.reader.size_bytes)
    name = primary[40:72].decode("ascii", "replace").strip(" \0")
    image.features.append(f"volume {name!r}")
    image.features += [f"boots by {platform}" for platform in _platforms(image, catalog)]
    return image.info("iso", "bootable" if catalog else "data", -(-image.reader.size_bytes // 512) * 512)


def find_volume(image: Inspection, size_bytes: int) -> tuple[bytes, int]:
    """(primary descriptor, sector of the boot catalog or 0), both among the first sectors.

    `size_bytes`: of the whole file. Raises WrongInput.
    """
    primary, catalog = b"", 0
    for index in range(MAX_DESCRIPTORS):
        place = (FIRST_DESCRIPTOR + index) * SECTOR_BYTES
        data = image.reader.read_at(place, SECTOR_BYTES)
        if index == 0 and data[1:6] in (b"BEA01", b"NSR02", b"NSR03"):
            image.refuse("the image is UDF only, without ISO 9660")
        if len(data) < SECTOR_BYTES or data[1:6] != MAGIC:
            image.refuse(
                "the image is not ISO 9660: wrong magic" if index == 0 else "its descriptors do not end"
            )
        if data[0] == PRIMARY and not primary:
            primary = data
        if data[0] == BOOT and data[7:39].startswith(EL_TORITO):
            catalog = int.from_bytes(data[71:75], "little")
        if data[0] == END:
            break
    else:
        image.refuse(f"the image has more than {MAX_DESCRIPTORS} volume descriptors")
    if not primary:
        image.refuse("the image has no primary volume descriptor")
    _check_size(image, primary, size_bytes)
    return primary, catalog


def _check_size(image: Inspection, primary: bytes, size_bytes: int) -> None:
    """Numbers stand twice, little and big endian."""
    blocks, block = int.from_bytes(primary[80:84], "little"), int.from_bytes(primary[128:130], "little")
    if blocks != int.from_bytes(primary[84:88], "big") or block != int.from_bytes(primary[130:132], "big"):
        image.refuse("the ISO image gives two different sizes; it is damaged")
    if block not in (512, 1024, 2048):
        image.refuse(f"the ISO image has blocks of {block} bytes")
    if blocks * block > size_bytes:
        image.refuse(f"the ISO image is cut off: {size_bytes} of {blocks * block} bytes")


def _platforms(image: Inspection, catalog: int) -> list[str]:
    """What the boot catalog is for: the validation entry's platform, and those of section headers."""
    if not catalog:
        return []
    data = image.read("ISO boot catalog", catalog * SECTOR_BYTES, SECTOR_BYTES)
    if data[0] != 1 or data[30:32] != b"\x55\xaa":
        image.refuse("the ISO image's boot catalog is damaged")
    numbers = [data[1], *(data[at + 1] for at in range(64, SECTOR_BYTES, 32) if data[at] in SECTION_HEADERS)]
    return list(dict.fromkeys(PLATFORMS.get(number, f"platform {number}") for number in numbers))
