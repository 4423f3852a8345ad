"""Images of a given format: what they are, and why they are refused."""

import random
import struct
from pathlib import Path

import pytest
from image_samples import (
    BAT,
    CLUSTER,
    GIB,
    METADATA,
    MIB,
    PARAMETERS,
    PARENT,
    SIZE,
    extension,
    iso,
    qcow2,
    sparse_vmdk,
    vdi,
    vhd,
    vhd_footer,
    vhdx,
    vhdx_items,
)
from vmdk_samples import descriptor, front, header, stream

from pvccommon.errors import WrongInput
from pvccommon.images.byte_reader import FileReader, PrefixReader
from pvccommon.images.formats import FORMATS, inspect_image, qemu_format
from pvccommon.images.inspection import ImageInfo
from pvccommon.images.limits import Limits
from pvccommon.images.qcow2_clusters import OFFSET_MASK, used_clusters
from pvccommon.images.vhdx import crc32c

UNKNOWN = "00000000-0000-0000-0000-000000000001"


def inspect(image_format: str, data: bytes, limits: Limits | None = None) -> ImageInfo:
    return inspect_image(image_format, PrefixReader(data, len(data)), limits or Limits())


GOOD = {
    "raw": ("raw", bytes(4096), "", 4096, ()),
    "raw, odd": ("raw", bytes(1000), "", 1024, ()),
    "raw, bootable": ("raw", bytes(510) + b"\x55\xaa", "", 512, ("boot record",)),
    "qcow2 v3": ("qcow2", qcow2(), "version 3", GIB, ("cluster 64 KiB", "compression zlib")),
    "qcow2 v2": ("qcow2", qcow2(version=2), "version 2", GIB, ("cluster 64 KiB",)),
    "qcow2 zstd": (
        "qcow2",
        qcow2(incompatible=8, compression=1),
        "version 3",
        GIB,
        ("cluster 64 KiB", "compression zstd"),
    ),
    "qcow2 extensions": (
        "qcow2",
        qcow2(extensions=extension(0x6803F857, b"x" * 45) + extension(0x23852875, b"x" * 24) + bytes(8)),
        "version 3",
        GIB,
        ("cluster 64 KiB", "compression zlib"),
    ),
    "vmdk": ("vmdk", sparse_vmdk(), "monolithicSparse", MIB, ("grain 64 KiB", "adapter lsilogic")),
    "vmdk stream": (
        "vmdk",
        stream({}, 2048),
        "streamOptimized",
        MIB,
        ("grain 64 KiB", "adapter lsilogic", "tables at the end"),
    ),
    "vhd": ("vhd", vhd(), "dynamic", 8 * MIB, ("creator 'qem2'", "block 2 MiB")),
    "vhd fixed": ("vhd", bytes(MIB) + vhd_footer(MIB, kind=2), "fixed", MIB, ("creator 'qem2'",)),
    "vhdx": ("vhdx", vhdx(), "dynamic", 64 * MIB, ("block 1 MiB", "sector 512 bytes")),
    "vdi": ("vdi", vdi(), "dynamic", 4 * MIB, ("block 1 MiB",)),
    "iso": (
        "iso",
        iso(),
        "bootable",
        20 * 2048,
        ("volume 'TEST'", "boots by BIOS", "boots by UEFI"),
    ),
    "iso, data": ("iso", iso(kinds=(1, 255)), "data", 20 * 2048, ("volume 'TEST'",)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_images(name: str) -> None:
    image_format, data, subformat, size, features = GOOD[name]
    info = inspect(image_format, data)
    assert (info.format, info.subformat, info.virtual_bytes) == (image_format, subformat, size)
    assert info.features == features


def test_every_format_has_a_good_image() -> None:
    assert {entry[0] for entry in GOOD.values()} == FORMATS.keys()


@pytest.mark.parametrize(
    ("image_format", "data", "warning"),
    [
        ("raw", qcow2(), "begins like qcow2"),
        ("raw", descriptor(1), "begins like vmdk"),
        ("raw", bytes(1000), "filled up with zeros"),
        ("qcow2", qcow2(incompatible=1), "was not closed cleanly"),
        ("qcow2", qcow2(snapshots=(2, CLUSTER)), "snapshots are left out"),
    ],
)
def test_warnings(image_format: str, data: bytes, warning: str) -> None:
    assert any(warning in text for text in inspect(image_format, data).warnings)


FLAT = descriptor(2048, create_type="monolithicSparse", extents='RW 2048 FLAT "/etc/shadow" 0')
WITH_PARENT = descriptor(2048, create_type="monolithicSparse", parent="01234567")
HOSTILE = {
    "unknown format": ("qed", b"QED\0", "the format 'qed' is not known"),
    "a format like a path": ("../raw", b"x", "the format '../raw' is not known"),
    "empty": ("raw", b"", "the image is empty"),
    # qcow2
    "qcow2: other magic": ("qcow2", bytes(200), "the image is not qcow2: wrong magic"),
    "qcow2: raw": ("qcow2", b"\xeb\x63\x90" + bytes(600), "the image is not qcow2: wrong magic"),
    "qcow2: cut": ("qcow2", qcow2()[:60], "the qcow2 header lies outside the file"),
    "qcow2: cut v3": ("qcow2", qcow2()[:90], "the qcow2 header lies outside the file"),
    "qcow2: version 1": ("qcow2", qcow2(version=1), "the qcow2 image has the version 1"),
    "qcow2: version 4": ("qcow2", qcow2(version=4), "the qcow2 image has the version 4"),
    "qcow2: backing file": (
        "qcow2",
        qcow2(backing=(112, 11), extensions=b"/etc/shadow"),
        "has a backing file, '/etc/shadow'",
    ),
    "qcow2: backing file without name": ("qcow2", qcow2(backing=(2**60, 9)), "has a backing file, ''"),
    "qcow2: backing JSON": (
        "qcow2",
        qcow2(backing=(112, 21), extensions=b'json:{"driver":"nbd"}'),
        'has a backing file, \'json:{"driver":"nbd"}\'',
    ),
    "qcow2: data file": ("qcow2", qcow2(incompatible=4), "keeps its data in another file"),
    "qcow2: data file named": (
        "qcow2",
        qcow2(extensions=extension(0x44415441, b"/etc/shadow")),
        "names an external data file",
    ),
    "qcow2: AES": ("qcow2", qcow2(encryption=1), "the qcow2 image is encrypted"),
    "qcow2: LUKS": ("qcow2", qcow2(encryption=2), "the qcow2 image is encrypted"),
    "qcow2: LUKS header": ("qcow2", qcow2(extensions=extension(0x0537BE77, bytes(16))), "is encrypted"),
    "qcow2: corrupt": ("qcow2", qcow2(incompatible=2), "is marked as corrupt"),
    "qcow2: unknown feature": ("qcow2", qcow2(incompatible=1 << 40), "features that are not known"),
    "qcow2: unknown compression": ("qcow2", qcow2(incompatible=8, compression=9), "unknown compression 9"),
    "qcow2: hidden compression": ("qcow2", qcow2(compression=1), "unknown compression 1"),
    "qcow2: small clusters": ("qcow2", qcow2(cluster_bits=8), "clusters of 2^8 bytes"),
    "qcow2: huge clusters": ("qcow2", qcow2(cluster_bits=4_000_000_000), "clusters of 2^4000000000 bytes"),
    "qcow2: reference counts": ("qcow2", qcow2(refcount_order=7), "reference counts of 2^7 bits"),
    "qcow2: long header": ("qcow2", qcow2(header_bytes=2**31), "a header of 2147483648 bytes"),
    "qcow2: odd header": ("qcow2", qcow2(header_bytes=107), "a header of 107 bytes"),
    "qcow2: long extension": (
        "qcow2",
        qcow2(extensions=extension(5, length=2**32 - 1)),
        "longer than its cluster",
    ),
    "qcow2: many extensions": (
        "qcow2",
        qcow2(extensions=extension(5) * 40),
        "more than 32 header extensions",
    ),
    "qcow2: no size": ("qcow2", qcow2(size=0), "its virtual size is 0"),
    "qcow2: huge": ("qcow2", qcow2(size=2**60), "its virtual size, 1152921504606846976 bytes, is over"),
    "qcow2: many snapshots": ("qcow2", qcow2(snapshots=(17, CLUSTER)), "has 17 snapshots; at most 16"),
    "qcow2: snapshots outside": (
        "qcow2",
        qcow2(snapshots=(1, 2**40)),
        "the qcow2 snapshot table lies outside",
    ),
    "qcow2: L1 outside": ("qcow2", qcow2(l1=(2, 2**40)), "the qcow2 L1 table lies outside the file"),
    "qcow2: L1 not aligned": (
        "qcow2",
        qcow2(l1=(2, 7)),
        "the qcow2 L1 table is at 7, where no cluster begins",
    ),
    "qcow2: L1 at 0": ("qcow2", qcow2(l1=(2, 0)), "the qcow2 L1 table is at 0"),
    "qcow2: short L1": ("qcow2", qcow2(l1=(1, CLUSTER)), "an L1 table of 1 entries; its size needs 2"),
    "qcow2: long L1": ("qcow2", qcow2(l1=(2**30, CLUSTER)), "an L1 table of 1073741824 entries"),
    "qcow2: L2 outside": ("qcow2", qcow2(l1_entries=(2**40, 0)), "L1 table points to 1099511627776"),
    "qcow2: L2 not aligned": ("qcow2", qcow2(l1_entries=(CLUSTER + 512, 0)), "L1 table points to 66048"),
    "qcow2: refcounts outside": (
        "qcow2",
        qcow2(refcounts=(2**40, 1)),
        "the qcow2 refcount table lies outside",
    ),
    "qcow2: no refcounts": ("qcow2", qcow2(refcounts=(CLUSTER, 0)), "a refcount table of no sensible size"),
    "qcow2: cut off": ("qcow2", qcow2(clusters=2), "lies outside the file; it is damaged or cut off"),
    "qcow2: a cluster many times": (
        "qcow2",
        qcow2(l2_entries=(1 << 63 | 2 * CLUSTER,) * 5),
        "the qcow2 clusters in use do not fit into the file: 5 or more of 64 KiB, in 262144 bytes",
    ),
    "qcow2: a cluster many times, in version 2": (
        "qcow2",
        qcow2(version=2, l2_entries=(2 * CLUSTER,) * 8192),
        "the qcow2 clusters in use do not fit into the file: 8192 or more",
    ),
    "qcow2: a cluster many times, with subclusters": (
        "qcow2",
        qcow2(incompatible=16, l1=(4, CLUSTER), l2_entries=(2 * CLUSTER, 1) * 5),
        "the qcow2 clusters in use do not fit into the file: 5 or more",
    ),
    "qcow2: an L2 table many times": (
        "qcow2",
        qcow2(l1=(5, CLUSTER), l1_entries=(3 * CLUSTER,) * 5),
        "the qcow2 L2 tables in use do not fit into the file: 5 or more",
    ),
    # VMDK
    "vmdk: a grain many times": (
        "vmdk",
        sparse_vmdk(grains=(30,) * 16),
        "the VMDK grains in use do not fit into the file: 16 or more of 64 KiB, in 15360",
    ),
    "vmdk: sector 1 many times": (
        "vmdk",
        sparse_vmdk(grains=(1,) * 16),
        "the VMDK grains in use do not fit into the file",
    ),
    "vmdk: a compressed grain many times": (
        "vmdk",
        sparse_vmdk(flags=3 | 1 << 16, compression=1, grains=(30,) * 31),
        "the VMDK grains in use do not fit into the file: 31 or more of 512 bytes",
    ),
    "vmdk: a grain table many times": (
        "vmdk",
        sparse_vmdk(128 * 512 * 9, tables=(26,) * 9),
        "the VMDK grain tables in use do not fit into the file: 9 or more of 2 KiB",
    ),
    "vmdk: other magic": ("vmdk", bytes(2000), "the image is not a VMDK: wrong magic"),
    "vmdk: descriptor only": ("vmdk", FLAT, "is only a descriptor, which points to other files"),
    "vmdk: flat extent": ("vmdk", sparse_vmdk(text=FLAT), "an extent of type FLAT"),
    "vmdk: parent": ("vmdk", sparse_vmdk(text=WITH_PARENT), "names a parent image, '01234567'"),
    "vmdk: other type": (
        "vmdk",
        sparse_vmdk(text=descriptor(2048)),
        "descriptor and header give different types",
    ),
    "vmdk: other size": (
        "vmdk",
        sparse_vmdk(text=descriptor(9, create_type="monolithicSparse")),
        "descriptor and header give different sizes",
    ),
    "vmdk: descriptor outside": (
        "vmdk",
        header(2048, descriptor_at=2**50),
        "the VMDK descriptor lies outside",
    ),
    "vmdk: directory outside": (
        "vmdk",
        sparse_vmdk(directory=2**50),
        "the VMDK grain directory lies outside",
    ),
    "vmdk: directory at the end": (
        "vmdk",
        sparse_vmdk(directory=2**64 - 1),
        "the VMDK has no grain directory",
    ),
    "vmdk: table outside": (
        "vmdk",
        sparse_vmdk(tables=(4_000_000_000,)),
        "a grain table of the VMDK lies outside",
    ),
    "vmdk: cut": ("vmdk", front(2048)[:2000], "the VMDK descriptor lies outside the file"),
    "vmdk: huge": ("vmdk", header(2**60), "its virtual size, 590295810358705651712 bytes, is over"),
    # VHD
    "vhd: other magic": ("vhd", bytes(5000), "the image is not VHD: wrong magic"),
    "vhd: cut": ("vhd", vhd()[:100], "the VHD footer lies outside the file"),
    "vhd: differencing": ("vhd", vhd(kind=4), "the VHD is a differencing disk"),
    "vhd: unknown type": ("vhd", vhd(kind=9), "the VHD is of the unknown type 9"),
    "vhd: version": ("vhd", vhd(version=0x20000), "the VHD has the unknown version 2"),
    "vhd: footer's checksum": ("vhd", vhd_footer(MIB, damage=True), "the VHD footer has a wrong checksum"),
    "vhd: header's checksum": ("vhd", vhd(damage=True), "the VHD header has a wrong checksum"),
    "vhd: header's magic": ("vhd", vhd(magic=b"garbage!"), "is not a dynamic VHD: wrong magic"),
    "vhd: blocks": ("vhd", vhd(block=3 * MIB), "blocks of 3145728 bytes"),
    "vhd: small blocks": ("vhd", vhd(block=512), "blocks of 512 bytes"),
    "vhd: short table": ("vhd", vhd(entries=1), "a table of 1 blocks; its size needs 4"),
    "vhd: table outside": ("vhd", vhd(table=2**50), "the VHD block table lies outside"),
    "vhd: block outside": ("vhd", vhd(blocks=(999_999,)), "a block of the VHD lies outside"),
    "vhd: a block many times": (
        "vhd",
        vhd(blocks=(4,) * 4),
        "the VHD blocks in use do not fit into the file: 4 or more of 2 MiB, in 2560 bytes",
    ),
    "vhd: fixed and cut": ("vhd", vhd_footer(MIB, kind=2), "the VHD data lies outside the file"),
    "vhd: no copy": ("vhd", bytes(512) + vhd_footer(MIB), "no copy of its footer at its beginning"),
    "vhd: no size": ("vhd", vhd(0), "its virtual size is 0"),
    "vhd: huge": ("vhd", vhd(2**60), "its virtual size, 1152921504606846976 bytes, is over"),
    # VHDX
    "vhdx: other magic": ("vhdx", bytes(5000), "the image is not VHDX: wrong magic"),
    "vhdx: cut": ("vhdx", vhdx()[:70_000], "the VHDX header lies outside the file"),
    "vhdx: damaged header": ("vhdx", vhdx(damage=True), "the VHDX has no valid header"),
    "vhdx: log": ("vhdx", vhdx(log=b"x" * 16), "its log would have to be replayed"),
    "vhdx: no regions": ("vhdx", vhdx(regions={}), "the VHDX has no block table or no metadata"),
    "vhdx: unknown region": (
        "vhdx",
        vhdx(regions={UNKNOWN: (MIB, MIB, 1)}),
        "needs a region that is not known",
    ),
    "vhdx: region outside": (
        "vhdx",
        vhdx(regions={BAT: (2**40, MIB, 1)}),
        "the VHDX region lies outside the file",
    ),
    "vhdx: region on the header": (
        "vhdx",
        vhdx(regions={METADATA: (0, MIB, 1)}),
        "is at 0, where none can be",
    ),
    "vhdx: metadata's magic": ("vhdx", vhdx(metadata_magic=b"nonsense"), "wrong magic"),
    "vhdx: parent": ("vhdx", vhdx(items={PARENT: (b"x", 0)}), "the VHDX names a parent"),
    "vhdx: differencing": ("vhdx", vhdx(items=vhdx_items(flags=2)), "the VHDX is a differencing disk"),
    "vhdx: unknown item": ("vhdx", vhdx(items={UNKNOWN: (b"x", 4)}), "needs metadata that is not known"),
    "vhdx: few items": ("vhdx", vhdx(items={PARAMETERS: (b"x" * 8, 4)}), "the VHDX lacks metadata"),
    "vhdx: short item": ("vhdx", vhdx(items={**vhdx_items(), SIZE: (b"x", 4)}), "the VHDX lacks metadata"),
    "vhdx: blocks": ("vhdx", vhdx(items=vhdx_items(block=3)), "blocks of 3 bytes"),
    "vhdx: sectors": ("vhdx", vhdx(items=vhdx_items(sector=3)), "sectors of 3 bytes"),
    "vhdx: huge": ("vhdx", vhdx(items=vhdx_items(size=2**60)), "its virtual size, 1152921504606846976"),
    "vhdx: short table": ("vhdx", vhdx(items=vhdx_items(size=2**38)), "a block table of 131072 entries"),
    "vhdx: block outside": ("vhdx", vhdx(blocks=(2**40 | 6,)), "a block of the VHDX lies outside"),
    "vhdx: a block many times": (
        "vhdx",
        vhdx(blocks=(3 * MIB | 6,) * 64),
        "the VHDX blocks in use do not fit into the file: 64 or more of 1 MiB, in 4194304",
    ),
    "vhdx: partly elsewhere": ("vhdx", vhdx(blocks=(7,)), "blocks that are partly in another file"),
    # VDI
    "vdi: other magic": ("vdi", vdi(signature=1), "the image is not VDI: wrong magic"),
    "vdi: cut": ("vdi", vdi()[:300], "the VDI header lies outside the file"),
    "vdi: version": ("vdi", vdi(version=0x20003), "the VDI has the version 2.3"),
    "vdi: differencing": ("vdi", vdi(kind=4), "stands on another image"),
    "vdi: parent": ("vdi", vdi(parent=b"x" * 16), "stands on another image"),
    "vdi: blocks": ("vdi", vdi(block=4096), "blocks of 4096 bytes"),
    "vdi: number of blocks": ("vdi", vdi(blocks=9), "9 blocks, 1 in use; its size needs 4"),
    "vdi: block outside": ("vdi", vdi(table=(77,)), "a block of the VDI lies outside"),
    "vdi: table outside": ("vdi", vdi(2**40, blocks=2**20), "the VDI block table lies outside"),
    "vdi: huge": ("vdi", vdi(2**60), "its virtual size, 1152921504606846976 bytes, is over"),
    # ISO 9660
    "iso: other magic": ("iso", iso(magic=b"xxxxx"), "the image is not ISO 9660: wrong magic"),
    "iso: short": ("iso", bytes(1000), "the image is not ISO 9660: wrong magic"),
    "iso: UDF": ("iso", iso(magic=b"BEA01"), "the image is UDF only"),
    "iso: no volume": ("iso", iso(kinds=(0, 255)), "the image has no primary volume descriptor"),
    "iso: no end": ("iso", iso(kinds=(1,)), "its descriptors do not end"),
    "iso: endless": ("iso", iso(kinds=(1,) + (2,) * 70), "more than 64 volume descriptors"),
    "iso: two sizes": ("iso", iso(blocks_again=7), "gives two different sizes"),
    "iso: cut": ("iso", iso(blocks=999), "the ISO image is cut off: 40960 of 2045952 bytes"),
    "iso: blocks": ("iso", iso(block=3), "blocks of 3 bytes"),
    "iso: catalog": ("iso", iso(catalog=b"x"), "boot catalog is damaged"),
    "iso: catalog outside": ("iso", iso(place=2**31), "the ISO boot catalog lies outside the file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_with_their_reason(name: str) -> None:
    image_format, data, reason = HOSTILE[name]
    with pytest.raises(WrongInput) as caught:
        inspect(image_format, data)
    assert reason in caught.value.message


COMPRESSED, ZERO = 1 << 62, 1


@pytest.mark.parametrize(
    ("image_format", "data"),
    [
        ("qcow2", qcow2(l2_entries=(1 << 63 | 2 * CLUSTER,) * 4)),
        ("qcow2", qcow2(l2_entries=(COMPRESSED | 2 * CLUSTER,) * 4096 + (1 << 63 | ZERO,) * 4096)),
        ("qcow2", qcow2(incompatible=16, l1=(4, CLUSTER), l2_entries=(0, 2**64 - 1) * 4096)),
        ("vmdk", sparse_vmdk(grains=(30,) + (0,) * 15)),
        ("vmdk", sparse_vmdk(flags=3 | 4, grains=(1,) * 16)),
        ("vmdk", sparse_vmdk(128 * 512 * 9, tables=(26,) + (0,) * 8)),
        ("vmdk", sparse_vmdk(flags=3 | 1 << 16, compression=1, grains=(30,) * 30)),
        ("vhd", vhd(blocks=(4,) + (0xFFFFFFFF,) * 3)),
        ("vhdx", vhdx(blocks=(3 * MIB | 6,) + (3 * MIB | 2,) * 63)),
    ],
)
def test_only_what_takes_room_in_the_file_is_counted(image_format: str, data: bytes) -> None:
    assert inspect(image_format, data).format == image_format


@pytest.mark.parametrize("entry_bytes", [8, 16])
def test_clusters_are_counted_as_one_by_one(entry_bytes: int) -> None:
    dice = random.Random(1)
    choices = (0, 1, 2**63, 2**62, 2**62 | 512, 512, 2**55, 2**56, 2**61 | 2**9, 2**64 - 1, OFFSET_MASK)
    entries = [dice.choice(choices) for _ in range(4096)]
    table = struct.pack(">4096Q", *entries)
    one_by_one = [entry & OFFSET_MASK and not entry & COMPRESSED for entry in entries[:: entry_bytes // 8]]
    assert used_clusters(table, entry_bytes) == sum(map(bool, one_by_one)) > 0


@pytest.mark.parametrize(("image_format", "data"), [("qcow2", qcow2()), ("vmdk", sparse_vmdk())])
def test_tables_that_would_take_too_long_are_refused(image_format: str, data: bytes) -> None:
    with pytest.raises(WrongInput, match=r"tables take over 1000 bytes"):
        inspect(image_format, data, Limits(table_bytes=1000))


def test_the_limit_of_the_virtual_size_can_be_set() -> None:
    for image_format, data, *_ in GOOD.values():
        with pytest.raises(WrongInput, match=r"its virtual size, [0-9]+ bytes, is over 100"):
            inspect(image_format, data, Limits(virtual_bytes=100))


@pytest.mark.parametrize("name", GOOD)
def test_damage_is_refused_or_harmless(name: str) -> None:
    """Flip bits in the parts that are read: never anything but a result or our own error."""
    image_format, data, *_ = GOOD[name]
    dice = random.Random(name)
    for _ in range(60):
        place = dice.randrange(min(len(data), 4096))
        damaged = data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
        try:
            assert inspect(image_format, damaged).virtual_bytes > 0
        except WrongInput as exc:
            assert exc.why


def test_the_first_bytes_of_a_stream_are_enough_or_it_is_said() -> None:
    data = stream({}, 2048)
    assert inspect_image("vmdk", PrefixReader(data[:20_000], len(data))).virtual_bytes == MIB
    fixed = bytes(MIB) + vhd_footer(MIB, kind=2)
    with pytest.raises(WrongInput, match="only the first 4096 are here"):
        inspect_image("vhd", PrefixReader(fixed[:4096], len(fixed)))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(qcow2())
    with path.open("rb") as file:
        reader = FileReader(file.fileno())
        assert inspect_image("qcow2", reader).virtual_bytes == GIB
        assert reader.read_at(reader.size_bytes - 3, 10) == bytes(3)


def test_names_for_qemu() -> None:
    assert [qemu_format(name) for name in ("vhd", "iso", "qcow2")] == ["vpc", "raw", "qcow2"]


def test_castagnoli_checksum() -> None:
    """RFC 3720 B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
