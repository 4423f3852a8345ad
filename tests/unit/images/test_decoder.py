"""What the decoder makes of whole images, as frames: plans, warnings, refusals before anything is made."""

import io
import random
from typing import Any

import pytest
from archive_samples import entry, ova
from image_samples import iso, qcow2
from ovf_samples import DISK, STREAM_OPTIMIZED, ovf
from vmdk_samples import GRAIN, descriptor, stream

from pvccommon.errors import WrongInput
from pvccommon.images.decoder import decode
from pvccommon.images.frames import DATA, END, PLAN, Frame, read_frames

DATA_OF_GRAIN = random.Random(1).randbytes(GRAIN)
QCOW2 = "http://www.gnome.org/~markmc/qcow-image-format.html"
ONE_MIB = DISK.replace('"10"', '"1"').replace("2^30", "2^20")


def frames(data: bytes, form: str, size_bytes: int | None = None, sink: Any = None) -> list[Frame]:
    kind = form if form in ("iso", "ova") else "disk"
    sink = sink or io.BytesIO()
    decode(io.BytesIO(data), sink, kind, form, size_bytes or len(data), None)
    return list(read_frames(io.BytesIO(sink.getvalue())))


def warnings(found: list[Frame]) -> list[str]:
    [end] = [frame for frame in found if frame.kind == END]
    return list(end.document["warnings"])


def content(found: list[Frame]) -> bytes:
    return b"".join(frame.data for frame in found if frame.kind == DATA)


def test_raw_bytes_that_begin_like_another_format_are_taken_with_a_warning() -> None:
    found = frames(qcow2(), "raw")
    assert warnings(found) == ["the image begins like qcow2, and is taken as raw data all the same"]
    assert qcow2().startswith(content(found)[:512])
    assert warnings(frames(DATA_OF_GRAIN, "raw")) == []
    assert warnings(frames(b"few", "raw")) == ["the image is filled up with zeros to whole sectors"]


def test_an_iso_is_looked_at_before_it_is_stored() -> None:
    assert content(frames(iso(), "iso")).rstrip(b"\0") == iso().lstrip(b"\0").rstrip(b"\0")
    large = iso(sectors_in_file=2000, blocks=2000)
    [plan] = [frame for frame in frames(large, "iso") if frame.kind == PLAN]
    assert plan.document["disks"] == [{"disk_id": "iso", "size_bytes": 2000 * 2048}]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes(100), "the image is not ISO 9660"),
        (iso(magic=b"BEA01"), "UDF only"),
        (iso(blocks=2001, sectors_in_file=2000), "is cut off: 4096000 of 4098048 bytes"),
        (iso(kinds=(1,)), "its descriptors do not end"),
        (iso(block=3), "blocks of 3 bytes"),
    ],
)
def test_what_is_no_whole_iso_is_refused_before_anything_is_made(data: bytes, reason: str) -> None:
    sink = io.BytesIO()
    with pytest.raises(WrongInput, match=reason):
        frames(data, "iso", sink=sink)
    assert sink.getvalue() == b""


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (QCOW2, "disks of format qcow2 cannot be read out of an archive"),
        ("urn:vhdx", "disks of format vhdx cannot be read"),
    ],
)
def test_disks_of_other_formats_are_refused_with_the_command_that_converts_them(
    address: str, words: str
) -> None:
    document, sink = ovf(disks=ONE_MIB.replace(STREAM_OPTIMIZED, address)), io.BytesIO()
    with pytest.raises(WrongInput) as caught:
        frames(ova(document=document, disk=qcow2()), "ova", sink=sink)
    assert words in caught.value.message
    form = words.split()[3]
    command = f"qemu-img convert -f {form} -O vmdk -o subformat=streamOptimized OLD NEW.vmdk"
    assert command in caught.value.hint
    assert "archive both again" in caught.value.hint
    assert sink.getvalue() == b"", "nothing was made"


def test_disks_that_are_other_vmdks_are_refused_with_the_command_that_converts_them() -> None:
    for disk in (descriptor(2048), stream({}, 2048, flags=1), b"COWD" + bytes(2000)):
        with pytest.raises(WrongInput) as caught:
            frames(ova(document=ovf(disks=ONE_MIB), disk=disk), "ova")
        assert "qemu-img convert -O vmdk -o subformat=streamOptimized OLD NEW" in caught.value.hint


def test_disks_that_no_system_uses_may_be_of_any_format() -> None:
    other = ONE_MIB.replace(STREAM_OPTIMIZED, QCOW2).replace("vmdisk1", "b").replace("file1", "file2")
    files = '<File ovf:id="file1" ovf:href="disk1.vmdk"/><File ovf:id="file2" ovf:href="b.qcow2"/>'
    document = ovf(disks=ONE_MIB + other, files=files)
    disk = stream({0: DATA_OF_GRAIN}, 2048)
    archive = ova(document=document, disk=disk, after=[entry("b.qcow2", qcow2())])
    assert content(frames(archive, "ova")) == DATA_OF_GRAIN
