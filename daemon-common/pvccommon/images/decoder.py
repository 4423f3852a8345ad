"""Reads an image from standard input and writes its disks as frames to standard output.

`python3 -m pvccommon.images.decoder KIND FORMAT SIZE [SYSTEM]`, run without any rights (see
`pvcnoded.imports.confined`): everything a stranger's bytes could do happens here. SIZE is that of the input
in bytes; SYSTEM is the one to take of an OVA that describes several.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from pvccommon.errors import Internal, PvcError, WrongInput
from pvccommon.images.byte_source import Peeked, drain
from pvccommon.images.file_name import shown
from pvccommon.images.formats import qemu_format
from pvccommon.images.frames import (
    END,
    ERROR,
    NEXT,
    PLAN,
    ByteSink,
    write_data,
    write_document,
)
from pvccommon.images.hardware import Offer, choose_system, offer_hardware
from pvccommon.images.iso import iso_stream
from pvccommon.images.ova import OvaMember, OvaReader
from pvccommon.images.ovf_model import Ovf
from pvccommon.images.raw_image import raw_warnings
from pvccommon.images.streamoptimized import StreamOptimizedDecoder
from pvccommon.images.vmdk_header import CONVERT_HINT
from pvccommon.storage.pool import SECTOR_BYTES, ByteSource
from pvccommon.storage.sparse import data_runs

RAW, VMDK, ISO, OVA = "raw", "vmdk", "iso", "ova"
ISO_DISK: Final = "iso"
FIRST_DISK: Final = "sda"
# Small, because larger pieces go past it without being copied.
BUFFER_BYTES: Final = 64 * 1024

Runs = Iterator[tuple[int, memoryview]]  # of a disk: offset and content of what is not zero


class _Counted:
    """A stream that ends after `size_bytes`."""

    def __init__(self, source: ByteSource, size_bytes: int) -> None:
        self._source = source
        self._left = size_bytes

    def read(self, length: int, /) -> bytes:
        data = self._source.read(min(length, self._left))
        self._left -= len(data)
        return data


def decode(
    source: ByteSource, sink: ByteSink, kind: str, form: str, size_bytes: int, system: str | None
) -> None:
    """Decode one image. Raises WrongInput for everything that is wrong with it."""
    if kind == OVA:
        _decode_ova(source, sink, system)
    elif kind == ISO:
        _decode_single(sink, ISO_DISK, iso_stream(source, size_bytes), size_bytes)
    elif form == VMDK:
        _decode_stream(source, sink)
    elif form != RAW:
        raise WrongInput(
            "read the image", f"images of format {shown(form)} cannot be read as a stream", CONVERT_HINT
        )
    else:
        stream = Peeked(source, SECTOR_BYTES)
        _decode_single(sink, FIRST_DISK, stream, size_bytes, raw_warnings(stream.head, size_bytes))
    if source.read(1):
        raise WrongInput("read the image", f"there is more after the {size_bytes} bytes announced")


def _decode_single(
    sink: ByteSink, disk_id: str, stream: ByteSource, size_bytes: int, warnings: Sequence[str] = ()
) -> None:
    size = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    write_document(sink, PLAN, _plan([(disk_id, size)]))
    write_document(sink, NEXT, {"position": 0})
    _write_runs(sink, data_runs(stream, size_bytes, "read the image"))
    write_document(sink, END, {"warnings": list(warnings), "verified": {}})


def _decode_stream(source: ByteSource, sink: ByteSink) -> None:
    decoder = StreamOptimizedDecoder(source)
    write_document(sink, PLAN, _plan([(FIRST_DISK, decoder.virtual_bytes)]))
    write_document(sink, NEXT, {"position": 0})
    _write_runs(sink, decoder.runs())
    drain(source)
    write_document(sink, END, {"warnings": [], "verified": {}})


def _decode_ova(source: ByteSource, sink: ByteSink, system: str | None) -> None:
    ova = OvaReader(source)
    offer = offer_hardware(choose_system(ova.ovf, system))
    _check_formats(ova.ovf, offer)
    disks = [(disk.disk_id, disk.size_bytes) for disk in offer.disks]
    write_document(sink, PLAN, _plan(disks, offer))
    by_file = {disk.file: position for position, disk in enumerate(offer.disks) if disk.file}
    formats = {disk.file.href: disk.format for disk in ova.ovf.disks if disk.file}
    for member in ova.members():
        if member.name in by_file:
            position = by_file[member.name]
            write_document(sink, NEXT, {"position": position})
            _write_runs(sink, _member_runs(member, formats.get(member.name), disks[position][1]))
    report = ova.finish()
    warnings = list(dict.fromkeys((*report.warnings, *offer.warnings)))
    write_document(sink, END, {"warnings": warnings, "verified": report.verified})


def _member_runs(member: OvaMember, form: str | None, capacity_bytes: int) -> Runs:
    """The data of a disk's file, whose format is the one the OVF gives."""
    what = f"read {shown(member.name)}"
    if form == VMDK:
        decoder = StreamOptimizedDecoder(member)
        if decoder.virtual_bytes > capacity_bytes:
            why = (
                f"the file holds a disk of {decoder.virtual_bytes} bytes; the OVF announces {capacity_bytes}"
            )
            raise WrongInput(what, why)
        yield from decoder.runs()
    else:
        if member.size_bytes > capacity_bytes:
            raise WrongInput(what, f"it has {member.size_bytes} bytes; the OVF announces {capacity_bytes}")
        yield from data_runs(member, member.size_bytes, what)


def _check_formats(ovf: Ovf, offer: Offer) -> None:
    """Before anything is made, whether all disks are of a format that can be read as it comes."""
    used = {disk.ovf_disk for disk in offer.disks}
    for disk in ovf.disks:
        if disk.id in used and disk.file and disk.format not in (VMDK, RAW):
            convert = f"qemu-img convert -f {qemu_format(str(disk.format))} -O vmdk"
            raise WrongInput(
                f"read {shown(disk.file.href)}",
                f"disks of format {disk.format} cannot be read out of an archive",
                f"convert it: {convert} -o subformat=streamOptimized OLD NEW.vmdk; then give the OVF the new "
                "name and format, and archive both again without a manifest",
            )


def _write_runs(sink: ByteSink, runs: Runs) -> None:
    for offset, data in runs:
        write_data(sink, offset, data)


def _plan(disks: list[tuple[str, int]], offer: Offer | None = None) -> dict[str, object]:
    return {
        "disks": [{"disk_id": disk_id, "size_bytes": size} for disk_id, size in disks],
        "hardware": None if offer is None else hardware_document(offer),
        "warnings": [] if offer is None else list(offer.warnings),
    }


def hardware_document(offer: Offer) -> dict[str, object]:
    """What a profile made from the image takes as its defaults."""
    return {
        "vcpus": offer.vcpus,
        "memory_mib": offer.memory_mib,
        "firmware": offer.firmware,
        "serial": offer.serial,
        "vnc": offer.vnc,
        "disks": [{"disk_id": disk.disk_id, "bus": disk.bus} for disk in offer.disks],
        "nics": [{"network": nic.network, "model": nic.model, "mac": nic.mac} for nic in offer.nics],
    }


def main(arguments: list[str]) -> int:
    """Errors are told in a frame, too; the exit code is for whoever looks at the process."""
    kind, form, size, *system = arguments
    source = _Counted(open(0, "rb", BUFFER_BYTES, closefd=False), int(size))
    with open(1, "wb", BUFFER_BYTES, closefd=False) as sink:
        try:
            decode(source, sink, kind, form, int(size), system[0] if system else None)
        except PvcError as exc:
            write_document(sink, ERROR, exc.to_dict())
            return 1
        except (MemoryError, RecursionError, ValueError, OSError) as exc:
            write_document(sink, ERROR, Internal("read the image", f"{type(exc).__name__}: {exc}").to_dict())
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
