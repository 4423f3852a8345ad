"""Images and archives that nobody should send, made on the spot: each with the words it is refused with."""

import gzip
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import archive_samples as tar
import image_samples as images
import ovf_samples as xml
import vmdk_samples as vmdk
from archive_samples import entry, header, manifest, ova, pax
from hostile_server import Reply
from image_samples import CLUSTER, extension, iso, qcow2, sparse_vmdk, vdi, vhd, vhd_footer, vhdx
from ovf_samples import DISK, FILE, ITEMS, STREAM_OPTIMIZED, controller, cpu, drive, item, memory, system
from vmdk_samples import GRAIN, GRAIN_SECTORS, SECTOR, descriptor, grain, stream

MIB = 1024**2
GIB = 1024**3
CHUNKS, REQUEST, OVA, URL = "chunks", "one request", "ova", "url"
WAYS = (CHUNKS, REQUEST, OVA, URL)


@dataclass(frozen=True)
class Hostile:
    """One thing that is sent. `data` is made when it is its turn.

    `size_bytes`: what the sender announces, if not the truth. `reply`: what the server answers that it is
    fetched from, if not the file. `more`: further parameters of the request.
    """

    name: str
    way: str
    form: str
    data: Callable[[], bytes]
    reason: str
    size_bytes: int | None = None
    reply: Callable[[str, bytes], Reply] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.form if self.form in ("iso", "ova") else "disk"

    def __str__(self) -> str:
        return f"{self.form}: {self.name}"


# ---- samples

NOISE = bytes(range(256)) * (GRAIN // 256)
CAPACITY = MIB // SECTOR
GOOD_VMDK = stream({0: NOISE}, CAPACITY)
FIRST_GRAIN = len(vmdk.front(CAPACITY)) // SECTOR
SMALL_DISK = DISK.replace('"10"', '"1"').replace("2^30", "2^20")
FLAT = descriptor(2048, create_type="monolithicSparse", extents='RW 2048 FLAT "/etc/shadow" 0')
SHADOW = descriptor(CAPACITY, create_type="monolithicFlat", extents=f'RW {CAPACITY} FLAT "/etc/shadow" 0')
UNKNOWN = "00000000-0000-0000-0000-000000000001"
LAUGHS = "".join(
    f'<!ENTITY {name} "{(before + ";") * 10}">'
    for before, name in zip(("lol", "&a", "&b", "&c", "&d", "&e", "&f", "&g", "&h"), "abcdefghi", strict=True)
)

XXE = '<!DOCTYPE x [<!ENTITY s SYSTEM "file:///etc/passwd">]>'


def document(**parts: Any) -> bytes:
    """An OVF document that is good but for what is given: one disk of 1 MiB."""
    return xml.ovf(**{"disks": SMALL_DISK, "files": FILE.replace('ovf:size="1000"', ""), **parts})


GOOD_OVF = document()
FILES = {"web.ovf": GOOD_OVF, "disk1.vmdk": GOOD_VMDK}


def archive(before: Sequence[bytes] = (), after: Sequence[bytes] = (), **parts: Any) -> bytes:
    """An archive that is good but for these entries."""
    return ova(document=GOOD_OVF, disk=GOOD_VMDK, before=before, after=after, **parts)


def archive_of(**parts: Any) -> bytes:
    """An archive whose document is good but for these parts."""
    return ova(document=document(**parts), disk=GOOD_VMDK)


def with_manifest(lines: bytes) -> bytes:
    return archive(after=[entry("web.mf", lines)])


def bad_grains(*grains: bytes) -> bytes:
    return stream({}, 1024 * GRAIN_SECTORS, parts=grains, lie={0: FIRST_GRAIN})


def bad_descriptor(**fields: Any) -> bytes:
    return stream({0: NOISE}, CAPACITY, text=descriptor(CAPACITY, **fields))


def qcow2_with_table(entries: Sequence[int]) -> bytes:
    """A first and a second level, and what this holds."""
    data = bytearray(qcow2())
    struct.pack_into(f">{len(entries)}Q", data, 3 * CLUSTER, *entries)
    return bytes(data)


def two_disks(items: Sequence[str]) -> dict[str, Any]:
    files = FILE + '<File ovf:id="file2" ovf:href="disk2.vmdk"/>'
    disks = SMALL_DISK + SMALL_DISK.replace("vmdisk1", "vmdisk2").replace("file1", "file2")
    return {"files": files, "disks": disks, "items": items}


def blank_disks(count: int, gib: int) -> str:
    return "".join(
        f'<Disk ovf:diskId="d{n}" ovf:capacity="{gib}" ovf:capacityAllocationUnits="byte * 2^30"/>'
        for n in range(count)
    )


# ---- the table, way by way


def chunks(form: str, *cases: tuple[str, Callable[[], bytes], str]) -> list[Hostile]:
    return [Hostile(name, CHUNKS, form, data, reason) for name, data, reason in cases]


def at_once(form: str, *cases: tuple[str, Callable[[], bytes], str]) -> list[Hostile]:
    return [Hostile(name, REQUEST, form, data, reason) for name, data, reason in cases]


def as_ova(*cases: tuple[str, Callable[[], bytes], str]) -> list[Hostile]:
    return [Hostile(name, OVA, "ova", data, reason) for name, data, reason in cases]


def fetched(name: str, reply: Callable[[str, bytes], Reply], reason: str, **more: Any) -> Hostile:
    return Hostile(name, URL, "raw", lambda: NOISE, reason, reply=reply, more=more)


QCOW2 = [
    *chunks(
        "qcow2",
        ("backing file", lambda: qcow2(backing=(112, 11), extensions=b"/etc/shadow"),
         "has a backing file, '/etc/shadow'"),
        ("external data file", lambda: qcow2(incompatible=4), "keeps its data in another file"),
        ("external data file by name", lambda: qcow2(extensions=extension(0x44415441, b"/etc/shadow")),
         "names an external data file"),
        ("encrypted", lambda: qcow2(encryption=2), "the qcow2 image is encrypted"),
        ("17 snapshots", lambda: qcow2(snapshots=(17, CLUSTER)), "has 17 snapshots; at most 16"),
        ("snapshots outside the file", lambda: qcow2(snapshots=(1, 2**40)),
         "the qcow2 snapshot table lies outside"),
        ("corrupt bit", lambda: qcow2(incompatible=2), "is marked as corrupt"),
        ("L1 table outside the file", lambda: qcow2(l1=(2, 2**40)),
         "the qcow2 L1 table lies outside the file"),
        ("L2 table outside the file", lambda: qcow2(l1_entries=(2**40, 0)),
         "the qcow2 L1 table points to 1099511627776"),
        ("refcount bomb", lambda: qcow2(refcounts=(2 * CLUSTER, 2**31)),
         "the qcow2 refcount table lies outside"),
    ),
    *at_once(
        "qcow2",
        ("backing file in JSON", lambda: qcow2(backing=(112, 21), extensions=b'json:{"driver":"nbd"}'),
         'has a backing file, \'json:{"driver":"nbd"}\''),
        ("unknown feature", lambda: qcow2(incompatible=1 << 40), "features that are not known"),
        ("larger than allowed", lambda: qcow2(size=3 * 1024 * GIB),
         "its virtual size, 3298534883328 bytes, is over"),
        ("clusters of 2^40 bytes", lambda: qcow2(cluster_bits=40), "clusters of 2^40 bytes"),
        ("long L1 table", lambda: qcow2(l1=(2**30, CLUSTER)), "an L1 table of 1073741824 entries"),
        ("not qcow2", lambda: NOISE * 4, "the image is not qcow2: wrong magic"),
        ("data outside the file", lambda: qcow2_with_table([1 << 63 | 2**40]), "QEMU refuses it"),
        ("one cluster 8,192 times", lambda: qcow2(l2_entries=(2 * CLUSTER,) * 8192),
         "the qcow2 clusters in use do not fit into the file"),
    ),
]  # fmt: skip

VMDK = [
    *chunks(
        "vmdk",
        ("descriptor only, of /etc/shadow", lambda: SHADOW,
         "is only a descriptor, which points to other files"),
        ("flat extent", lambda: bad_descriptor(extents='RW 8 FLAT "/etc/shadow" 0'),
         "has an extent of type FLAT"),
        ("extent above", lambda: bad_descriptor(extents='RW 8 SPARSE "../x.vmdk"'),
         "'../x.vmdk' leads out of"),
        ("parent", lambda: bad_descriptor(parent="12345678"), "names a parent image, '12345678'"),
        ("two extents", lambda: bad_descriptor(extents='RW 8 SPARSE "a"\nRW 8 SPARSE "b"'),
         "has 2 extents instead of one"),
        ("encrypted", lambda: bad_descriptor(more='encryption.keySafe = "vmware:key/list"'),
         "descriptor says that the image is encrypted"),
        ("grain bomb", lambda: bad_grains(grain(0, bytes(20 * MIB))), "inflates to more than its size"),
        ("short grain", lambda: bad_grains(grain(0, bytes(GRAIN - 1))),
         f"inflates to {GRAIN - 1} of {GRAIN} bytes"),
        ("grains out of order", lambda: bad_grains(grain(128, NOISE), grain(0, NOISE)),
         "the VMDK's grains are not in ascending order"),
        ("grain outside the disk", lambda: bad_grains(grain(1024 * GRAIN_SECTORS, NOISE)),
         "belongs to sector 131072, where no grain can be"),
        ("tables that lie", lambda: stream({0: NOISE}, CAPACITY, lie={1: 500}),
         "tables do not match its grains"),
        ("cut off in a grain", lambda: GOOD_VMDK[: FIRST_GRAIN * SECTOR + 100],
         "the VMDK ends inside a grain"),
        ("data after the end", lambda: GOOD_VMDK + b"more", "there is data after the end of the VMDK stream"),
    ),
    *at_once(
        "vmdk",
        ("extent that is a disk of the host", lambda: bad_descriptor(extents='RW 8 SPARSE "/dev/sda"'),
         "'/dev/sda' is an absolute path"),
        ("parent by name", lambda: bad_descriptor(more='parentFileNameHint="/etc/passwd"'),
         "names a parent image, '/etc/passwd'"),
        ("no stream, and cut off", lambda: sparse_vmdk(), "QEMU refuses it: qemu-img: Could not open"),
        ("no stream, and a file of the host", lambda: sparse_vmdk(text=FLAT), "has an extent of type FLAT"),
        ("the same grain twice", lambda: bad_grains(grain(128, NOISE), grain(128, NOISE)),
         "the VMDK's grains are not in ascending order"),
        ("damaged grain", lambda: bad_grains(grain(0, b"", compressed=b"x" * 100)),
         "a grain of the VMDK is damaged"),
        ("larger than allowed", lambda: vmdk.front(3 * 1024 * GIB // SECTOR),
         "it holds 3298534883328 bytes, over the limit"),
        ("cut off before its tables", lambda: GOOD_VMDK[: FIRST_GRAIN * SECTOR + len(grain(0, NOISE))],
         "the VMDK has no footer; it is cut off"),
        ("no stream, and one grain 16 times", lambda: sparse_vmdk(grains=(30,) * 16),
         "the VMDK grains in use do not fit into the file"),
        ("ESX server's", lambda: b"COWD" + bytes(2000), "is an ESX server sparse extent"),
    ),
]  # fmt: skip

OTHERS = [
    *chunks(
        "vhd",
        ("differencing disk", lambda: vhd(kind=4), "the VHD is a differencing disk"),
        ("block outside the file", lambda: vhd(blocks=(999_999,)), "a block of the VHD lies outside"),
    ),
    *at_once(
        "vhd",
        ("fixed, no data", lambda: vhd_footer(MIB, kind=2), "the VHD data lies outside"),
        ("one block 4 times", lambda: vhd(blocks=(4,) * 4), "the VHD blocks in use do not fit into the file"),
    ),
    *chunks(
        "vhdx",
        ("log", lambda: vhdx(log=b"x" * 16), "its log would have to be replayed"),
        ("differencing disk", lambda: vhdx(items=images.vhdx_items(flags=2)),
         "the VHDX is a differencing disk"),
        ("unknown region", lambda: vhdx(regions={UNKNOWN: (MIB, MIB, 1)}),
         "needs a region that is not known"),
    ),
    *at_once(
        "vhdx",
        ("damaged header", lambda: vhdx(damage=True), "the VHDX has no valid header"),
        ("one block 64 times", lambda: vhdx(blocks=(3 * MIB | 6,) * 64),
         "the VHDX blocks in use do not fit into the file"),
    ),
    *chunks(
        "vdi",
        ("differencing image", lambda: vdi(kind=4), "the VDI stands on another image: it is of type 4"),
        ("snapshot", lambda: vdi(parent=b"x" * 16), "the VDI stands on another image: it names a parent"),
    ),
    *at_once("vdi", ("block outside the file", lambda: vdi(table=(77,)), "a block of the VDI lies outside")),
    *chunks(
        "iso",
        ("cut off", lambda: iso(blocks=999), "the ISO image is cut off: 40960 of 2045952 bytes"),
        ("no ISO", lambda: NOISE * 4, "the image is not ISO 9660"),
    ),
    *at_once("iso", ("UDF only", lambda: iso(magic=b"BEA01"), "the image is UDF only")),
    Hostile("longer than said", CHUNKS, "raw", lambda: NOISE, "there is more than the 65024 bytes announced",
            size_bytes=GRAIN - 512),
    Hostile("longer than said", REQUEST, "raw", lambda: NOISE, "has more than the 65024 bytes announced",
            size_bytes=GRAIN - 512),
    Hostile("shorter than said", REQUEST, "raw", lambda: NOISE, "only 65536 of 66048 bytes came",
            size_bytes=GRAIN + 512),
    Hostile("larger than allowed", REQUEST, "raw", lambda: NOISE, "its 3298534883328 bytes are over",
            size_bytes=3 * 1024 * GIB),
    Hostile("wrong checksum", REQUEST, "raw", lambda: NOISE, "its SHA-256 is",
            more={"sha256": "0" * 64}),
    Hostile("wrong checksum", CHUNKS, "vdi", vdi, "its SHA-256 is", more={"sha256": "0" * 64}),
    Hostile("unknown format", REQUEST, "qed", lambda: b"QED\0" + bytes(508), "format: must be one of"),
]  # fmt: skip

ARCHIVES = [
    *as_ova(
        ("absolute path", lambda: archive([entry("/etc/passwd")]), "'/etc/passwd' is an absolute path"),
        ("path above", lambda: archive([entry("../x")]), "'../x' leads out of its folder by '..'"),
        ("symbolic link", lambda: archive([entry("l", kind=b"2")]), "'l' is a symbolic link"),
        ("hard link", lambda: archive([entry("l", kind=b"1")]), "'l' is a hard link"),
        ("character device", lambda: archive([entry("l", kind=b"3")]), "'l' is a character device"),
        ("block device", lambda: archive([entry("l", kind=b"4")]), "'l' is a block device"),
        ("pipe", lambda: archive([entry("l", kind=b"6")]), "'l' is a named pipe"),
        ("folder", lambda: archive([entry("l/", kind=b"5")]), "'l/' is a folder"),
        ("sparse member", lambda: archive([entry("l", kind=b"S")]), "'l' is a GNU sparse file"),
        ("two files of one name", lambda: archive(after=[entry("disk1.vmdk")]),
         "has two files named 'disk1.vmdk'"),
        ("huge name", lambda: archive([entry("L", b"x" * 70_000, kind=b"L"), entry("x")]),
         "an extension header of 70000 bytes"),
        ("long name", lambda: archive([pax({"path": "x" * 256}), entry("x")]), "is longer than 255 bytes"),
        ("compressed", lambda: gzip.compress(archive()), "the archive is compressed with gzip"),
        ("1,001 files",
         lambda: tar.archive(entry("web.ovf", GOOD_OVF), *(entry(f"f{n}") for n in range(1001))),
         "has more than 1000 files"),
        ("OVF not first", lambda: tar.archive(entry("disk1.vmdk", GOOD_VMDK), entry("web.ovf", GOOD_OVF)),
         "its first file is 'disk1.vmdk' instead of the OVF document"),
        ("file that is missing", lambda: tar.archive(entry("web.ovf", GOOD_OVF)),
         "disk1.vmdk: is named by the OVF, but not in the archive"),
        ("wrong digest in the manifest", lambda: with_manifest(manifest({**FILES, "disk1.vmdk": b"x"})),
         "disk1.vmdk: its SHA256 is not what the manifest says"),
        ("manifest without the disk", lambda: with_manifest(manifest({"web.ovf": GOOD_OVF})),
         "web.mf: has no digest of 'disk1.vmdk'"),
        ("two manifests",
         lambda: archive(after=[entry("a.mf", manifest(FILES)), entry("b.mf", manifest(FILES))]),
         "the archive has a second manifest, 'b.mf'"),
        ("DOCTYPE", lambda: archive_of(prolog='<!DOCTYPE x SYSTEM "http://192.0.2.1/x.dtd">'),
         "has a DOCTYPE"),
        ("too deep", lambda: archive_of(more="<a>" * 40 + "</a>" * 40), "nested deeper than 32"),
        ("absurd capacity", lambda: archive_of(disks=SMALL_DISK.replace('"1"', '"99999999999"')),
         "capacity: "),
        ("more in the stream than in the OVF",
         lambda: ova(document=GOOD_OVF, disk=stream({0: NOISE}, 2 * CAPACITY)),
         "the file holds a disk of 2097152 bytes; the OVF announces 1048576"),
        ("two disks at one address",
         lambda: archive_of(**two_disks([controller(6, "lsilogic"), drive(), drive("vmdisk2", instance=11)])),
         "two disks have address 0 on controller '3'"),
        ("disk that is a qcow2",
         lambda: archive_of(disks=SMALL_DISK.replace(STREAM_OPTIMIZED, "http://www.gnome.org/~markmc/qcow-image-format.html")),
         "qemu-img convert -f qcow2 -O vmdk -o subformat=streamOptimized"),
        ("cut off in the disk", lambda: archive()[:-2000],
         "ends inside the file 'disk1.vmdk'; it is cut off"),
        ("no archive", lambda: b"\x7fELF" + bytes(2000), "it is not a tar archive"),
    ),
    *chunks(
        "ova",
        ("path above, by pax", lambda: archive([pax({"path": "../y"}), entry("x")]),
         "'../y' leads out of its folder"),
        ("sparse member, by pax", lambda: archive([pax({"GNU.sparse.size": "1"}), entry("l")]),
         "the archive has a GNU sparse file"),
        ("extension header of 4 GiB", lambda: archive([header("p", 2**32, kind=b"x")]),
         "an extension header of 4294967296 bytes"),
        ("billion laughs", lambda: archive_of(prolog=f"<!DOCTYPE x [{LAUGHS}]>", more="<a>&i;</a>"),
         "has a DOCTYPE"),
        ("20,001 elements", lambda: archive_of(more="<a/>" * 20_001), "more than 20000 elements"),
        ("document over 4 MiB", lambda: archive_of(more=f"<!--{'x' * 5_000_000}-->"),
         "'web.ovf' is larger than 4194304"),
        ("file of the OVF above", lambda: archive_of(files=FILE.replace("disk1", "../../disk1")),
         "'../../disk1.vmdk' leads out of its folder"),
        ("file of the OVF elsewhere",
         lambda: archive_of(files=FILE.replace("disk1.vmdk", "http://192.0.2.1/d")),
         "'http://192.0.2.1/d' is a URL"),
        ("disk that stands on another",
         lambda: archive_of(disks=SMALL_DISK.replace("/>", ' ovf:parentRef="x"/>')),
         "stand on another disk"),
        ("file of two disks", lambda: archive_of(disks=SMALL_DISK + SMALL_DISK.replace("vmdisk1", "b")),
         "is already the file of disk 'vmdisk1'"),
        ("60 blank disks of 1 TiB",
         lambda: archive_of(disks=SMALL_DISK + blank_disks(60, 1024),
                            items=[cpu(), memory(), controller(6, "lsilogic"), drive(),
                                   *(drive(f"d{n}", unit=n + 1, instance=20 + n) for n in range(60))]),
         "it holds 65970698715136 bytes, over the limit"),
        ("no disks", lambda: archive_of(items=[cpu(), memory()]), "it has no disks"),
        ("two systems, none chosen",
         lambda: archive_of(systems='<VirtualSystemCollection ovf:id="c">' + system((), identity="a")
                            + system((), identity="b") + "</VirtualSystemCollection>"),
                            "the OVF describes 2"),
        ("4,000 processors", lambda: archive_of(items=[cpu(4000), *ITEMS[1:]]),
         "gives 4000; must be from 1 to 1024"),
        ("drive that is a disk of the host",
         lambda: archive_of(items=[*ITEMS[:3], item(17, HostResource="/dev/sda")]),
         "does not name a disk"),
        ("grain bomb in the disk",
         lambda: ova(document=GOOD_OVF, disk=stream({}, CAPACITY, parts=[grain(0, bytes(20 * MIB))])),
         "inflates to more than its size"),
        ("data after the end", lambda: archive() + b"garbage", "there is data after the end of the archive"),
        ("no end", lambda: archive()[:-1024], "the archive has no end mark; it is cut off"),
        ("wrong checksum of a header", lambda: archive([header("x", 0, checksum=1)]), "has a wrong checksum"),
        ("two OVF documents", lambda: archive(after=[entry("b.ovf", GOOD_OVF)]),
         "a second OVF document, 'b.ovf'"),
    ),
]  # fmt: skip

FETCHED = [
    fetched("cut off", lambda url, data: Reply.of(data, length=len(data) + 512),
            "only 65536 of 66048 bytes came"),
    fetched("longer than said", lambda url, data: Reply.of(data, length=len(data) - 512), "its SHA-256 is"),
    fetched("endless, as long as said", lambda url, data: Reply.endless(GIB),
            "the server has taken too long"),
    fetched("endless, no length", lambda url, data: Reply.endless(None), "does not say how long the file is"),
    fetched("length of 5,000 digits", lambda url, data: Reply.of(data, length="9" * 5000),
            "a length of 5000 digits"),
    fetched("larger than allowed", lambda url, data: Reply.of(data, length=3 * 1024 * GIB),
            "its 3298534883328 bytes are over the limit"),
    fetched("compressed on its way", lambda url, data: Reply.of(data, more={"Content-Encoding": "gzip"}),
            "sends it compressed, although asked not to"),
    fetched("no HTTP", lambda url, data: Reply(b"220 ready\r\n"), "BadStatusLine"),
    fetched("not there", lambda url, data: Reply.of(b"no", status=404), "the server answers 404"),
    fetched("redirected to link-local", lambda url, data: Reply.to("http://169.254.169.254/latest/meta-data/"),
            "169.254.169.254 is an address of this node"),
    fetched("redirected to loopback", lambda url, data: Reply.to(url.replace("127.0.0.1", "127.0.0.2")),
            "127.0.0.2 is an address of this node"),
    fetched("redirected to IPv6 loopback", lambda url, data: Reply.to("http://[::1]:5432/"),
            "::1 is an address of this node"),
    fetched("redirected to a file", lambda url, data: Reply.to("file:///etc/shadow"),
            "only http:// and https:// are fetched"),
    fetched("redirected to nonsense", lambda url, data: Reply.to("http://[::1/"),
            "it is redirected to a malformed URL"),
    fetched("redirected for ever", lambda url, data: Reply.to(url), "redirected more than 5 times"),
    Hostile("external entity", URL, "ova", lambda: archive_of(prolog=XXE, more="<a>&s;</a>"),
            "has a DOCTYPE"),
    Hostile("backing file", URL, "qcow2", lambda: qcow2(backing=(112, 11), extensions=b"/etc/passwd"),
            "has a backing file, '/etc/passwd'"),
    Hostile("link out of the archive", URL, "ova", lambda: archive([entry("m", kind=b"2")]),
            "'m' is a symbolic link"),
]  # fmt: skip

TABLE = (*QCOW2, *VMDK, *OTHERS, *ARCHIVES, *FETCHED)
