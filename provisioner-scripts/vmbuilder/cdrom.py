"""A small CD-ROM for this VM alone: cloud-init's data, or an installer's answers."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vmbuilder import log
from vmbuilder.command import run
from vmbuilder.errors import CommandFailed, ValidationError
from vmbuilder.volumes import Volume, device_size_bytes

TOOLS: Final = ("xorriso",)
_TIMEOUT_S: Final = 60


def make(volume: Volume, label: str, files: Mapping[str, str]) -> None:
    """Create the volume (see `VMBuilder.answers`) as an ISO 9660 file system with these files by name.

    Raises ValidationError when they are too large for it.
    """
    volume.create()
    volume.map()
    try:
        with tempfile.TemporaryDirectory(prefix="cdrom-") as place:
            _copy(write_image(Path(place), label, files), volume)
    finally:
        volume.unmap()


def write_image(place: Path, label: str, files: Mapping[str, str]) -> Path:
    """An ISO 9660 image (Rock Ridge, Joliet) of these files, made in the directory `place`."""
    content = place / "content"
    content.mkdir(mode=0o700)
    for name, text in files.items():
        (content / name).write_text(text)
    image = place / "image.iso"
    try:
        _run_xorriso(content, label, image)
    except CommandFailed as exc:
        # xorriso 1.5.4 was seen to crash (SIGSEGV) once in about a thousand runs, with nothing wrong.
        log.write(log.Level.WARNING, f"once more: {exc}")
        _run_xorriso(content, label, image)
    return image


def _run_xorriso(content: Path, label: str, image: Path) -> None:
    image.unlink(missing_ok=True)
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-output", str(image), "-volid", label]
    run([*argv, "-joliet", "-rational-rock", str(content)], timeout_s=_TIMEOUT_S, quiet=True)


def _copy(image: Path, volume: Volume) -> None:
    size, room = image.stat().st_size, device_size_bytes(volume.mapped_node())
    if size > room:
        raise ValidationError(f"the files make a CD-ROM of {size} bytes; {room} is the limit")
    with image.open("rb") as source, open(volume.mapped_node(), "r+b") as device:
        shutil.copyfileobj(source, device)
        device.flush()
        os.fsync(device.fileno())
