"""What the inspection of every format uses: the image, its limits, and ways to refuse it."""

from dataclasses import dataclass, field
from typing import Final, NoReturn

from pvccommon.errors import WrongInput
from pvccommon.images.byte_reader import ByteReader
from pvccommon.images.limits import MIB, Limits
from pvccommon.images.ovf_model import ImageFormat

WHAT: Final = "inspect the image"
PIECE_BYTES: Final = 1 * MIB
CONVERT_HINT: Final = "make a plain copy first: qemu-img convert -O qcow2 OLD NEW"


@dataclass(frozen=True)
class ImageInfo:
    """What an image is. `features` are words for people, such as "cluster 64 KiB"; sizes are in bytes."""

    format: ImageFormat
    subformat: str
    virtual_bytes: int
    features: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass
class Inspection:
    """One image being inspected."""

    reader: ByteReader
    limits: Limits
    features: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def refuse(self, why: str, hint: str = "") -> NoReturn:
        raise WrongInput(WHAT, why, hint)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, of something that `name` says. Keep it small."""
        self.check_inside(name, offset, length)
        data = self.reader.read_at(offset, length)
        if len(data) < length:
            self.refuse(f"the {name} cannot be read to its end")
        return data

    def check_inside(self, name: str, offset: int, length: int) -> None:
        if offset + length > self.reader.size_bytes:
            self.refuse(f"the {name} lies outside the file; it is damaged or cut off")

    def check_places(self, name: str, used: int, length: int) -> None:
        """Each of `used` needs `length` bytes of the file for itself; the last may be cut short.

        What is named many times would be stored many times: a small file would fill the pool.
        """
        size = self.reader.size_bytes
        if used > -(-size // length):
            self.refuse(
                f"the {name} in use do not fit into the file: {used} or more of {size_text(length)}, "
                f"in {size} bytes; it is cut off, or some are named many times",
                CONVERT_HINT,
            )

    def check_tables(self, name: str, length: int) -> None:
        if length > self.limits.table_bytes:
            self.refuse(f"the {name} take over {self.limits.table_bytes} bytes", CONVERT_HINT)

    def check_magic(self, name: str, data: bytes, magic: bytes) -> None:
        if not data.startswith(magic):
            self.refuse(f"the image is not {name}: wrong magic", "give the format it really has")

    def check_virtual_size(self, size: int) -> None:
        if size <= 0:
            self.refuse("its virtual size is 0")
        if size > self.limits.virtual_bytes:
            self.refuse(f"its virtual size, {size} bytes, is over {self.limits.virtual_bytes}")

    def info(self, image_format: ImageFormat, subformat: str, virtual_bytes: int) -> ImageInfo:
        self.check_virtual_size(virtual_bytes)
        return ImageInfo(image_format, subformat, virtual_bytes, tuple(self.features), tuple(self.warnings))


def size_text(size: int) -> str:
    """A power of two for people: 64 KiB."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"
