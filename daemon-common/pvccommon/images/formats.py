"""Disk images of a *given* format: what they are, from a bounded look at their headers and tables.

The format is never guessed: an image that is raw for one reader and qcow2 for another can name any file.
This look needs no privileges and finds what must never reach QEMU, whose own look, in a sandbox, comes after.
"""

from collections.abc import Callable, Mapping
from typing import Final

from pvccommon.errors import WrongInput
from pvccommon.images.byte_reader import ByteReader
from pvccommon.images.file_name import shown
from pvccommon.images.inspection import WHAT, ImageInfo, Inspection
from pvccommon.images.iso9660 import inspect_iso9660
from pvccommon.images.limits import DEFAULT_LIMITS, Limits
from pvccommon.images.qcow2 import inspect_qcow2
from pvccommon.images.raw_image import inspect_raw
from pvccommon.images.vdi import inspect_vdi
from pvccommon.images.vhd import inspect_vhd
from pvccommon.images.vhdx import inspect_vhdx
from pvccommon.images.vmdk import inspect_vmdk

FORMATS: Final[Mapping[str, Callable[[Inspection], ImageInfo]]] = {
    "raw": inspect_raw,
    "qcow2": inspect_qcow2,
    "vmdk": inspect_vmdk,
    "vhd": inspect_vhd,
    "vhdx": inspect_vhdx,
    "vdi": inspect_vdi,
    "iso": inspect_iso9660,
}
# How QEMU calls those it calls otherwise.
QEMU_NAMES: Final = {"vhd": "vpc", "iso": "raw"}


def inspect_image(image_format: str, reader: ByteReader, limits: Limits = DEFAULT_LIMITS) -> ImageInfo:
    """Look at an image. Raises WrongInput with the reason: unknown format, or an image that is refused."""
    inspect = FORMATS.get(image_format)
    if inspect is None:
        raise WrongInput(
            WHAT, f"the format {shown(image_format)} is not known", f"give one of {', '.join(FORMATS)}"
        )
    if reader.size_bytes == 0:
        raise WrongInput(WHAT, "the image is empty")
    return inspect(Inspection(reader, limits))


def qemu_format(image_format: str) -> str:
    """QEMU's name of a format."""
    return QEMU_NAMES.get(image_format, image_format)
