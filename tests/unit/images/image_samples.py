"""Disk images, as small as their formats allow, every field open to lies."""

import struct
from collections.abc import Mapping
from uuid import UUID

from vmdk_samples import descriptor, header, sectors

from pvccommon.images.vhdx import crc32c

CLUSTER = 65536
MIB = 2**20
GIB = 2**30


def qcow2(
    *,
    magic: bytes = b"QFI\xfb",
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    size: int = GIB,
    encryption: int = 0,
    l1: tuple[int, int] = (2, CLUSTER),
    refcounts: tuple[int, int] = (2 * CLUSTER, 1),
    snapshots: tuple[int, int] = (0, 0),
    incompatible: int = 0,
    refcount_order: int = 4,
    header_bytes: int = 112,
    compression: int = 0,
    extensions: bytes = bytes(8),
    l1_entries: tuple[int, ...] = (3 * CLUSTER, 0),
    l2_entries: tuple[int, ...] = (),
    clusters: int = 4,
) -> bytes:
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        magic,
        version,
        *backing,
        cluster_bits,
        size,
        encryption,
        *l1,
        *refcounts,
        *snapshots,
    )
    if version > 2:
        head += struct.pack(">QQQIIB7x", incompatible, 0, 0, refcount_order, header_bytes, compression)
    body = (head + extensions).ljust(CLUSTER, b"\0") + struct.pack(f">{len(l1_entries)}Q", *l1_entries)
    if l2_entries:
        body = body.ljust(3 * CLUSTER, b"\0") + struct.pack(f">{len(l2_entries)}Q", *l2_entries)
    return body.ljust(clusters * CLUSTER, b"\0")


def extension(kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)


def sparse_vmdk(
    capacity: int = 2048,
    *,
    text: bytes | None = None,
    tables: tuple[int, ...] = (26,),
    grains: tuple[int, ...] = (),
    **fields: object,
) -> bytes:
    """monolithicSparse: header, descriptor, directory in sector 25, a grain table in 26."""
    settings = {"flags": 3, "directory": 25, "overhead": 128, "compression": 0, **fields}
    words = descriptor(capacity, create_type="monolithicSparse") if text is None else text
    head = header(capacity, **settings) + sectors(words)  # type: ignore[arg-type]  # passed on
    return (
        head.ljust(25 * 512, b"\0")
        + struct.pack(f"<{len(tables)}I", *tables).ljust(512, b"\0")
        + struct.pack(f"<{len(grains)}I", *grains).ljust(4 * 512, b"\0")
    )


def _vhd_sum(data: bytes, place: int) -> bytes:
    return data[:place] + struct.pack(">I", ~sum(data) & 0xFFFFFFFF) + data[place + 4 :]


def vhd_footer(
    size: int, *, kind: int = 3, magic: bytes = b"conectix", version: int = 0x10000, damage: bool = False
) -> bytes:
    offset = 512 if kind != 2 else 2**64 - 1
    fields = (magic, 2, version, offset, 0, b"qem2", 0, b"Wi2k", size, size, 0, kind, 0)
    footer = _vhd_sum(struct.pack(">8sIIQI4sI4sQQIII", *fields).ljust(512, b"\0"), 64)
    return footer[:100] + b"x" + footer[101:] if damage else footer


def vhd(
    size: int = 8 * MIB,
    *,
    magic: bytes = b"cxsparse",
    block: int = 2 * MIB,
    entries: int = 4,
    table: int = 1536,
    blocks: tuple[int, ...] = (0xFFFFFFFF,) * 4,
    damage: bool = False,
    **footer: object,
) -> bytes:
    """A dynamic disk without data."""
    head = struct.pack(">8sQQIIII", magic, 2**64 - 1, table, 0x10000, entries, block, 0).ljust(1024, b"\0")
    head = _vhd_sum(head, 36)
    if damage:
        head = head[:60] + b"x" + head[61:]
    end = vhd_footer(size, **footer)  # type: ignore[arg-type]  # passed on
    return end + head + struct.pack(f">{len(blocks)}I", *blocks).ljust(512, b"\xff") + end


def vdi(
    size: int = 4 * MIB,
    *,
    signature: int = 0xBEDA107F,
    version: int = 0x10001,
    kind: int = 1,
    block: int = MIB,
    sector: int = 512,
    blocks: int = 4,
    allocated: int = 1,
    parent: bytes = bytes(16),
    table: tuple[int, ...] = (0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE),
) -> bytes:
    head = struct.pack("<64sIIIII256s", b"<<< disk >>>\n", signature, version, 400, kind, 0, b"")
    head += struct.pack("<IIIIIIIQIIII", 512, 1024, 0, 0, 0, sector, 0, size, block, 0, blocks, allocated)
    head += bytes(48) + parent
    return head.ljust(512, b"\0") + struct.pack(f"<{len(table)}I", *table).ljust(512, b"\0") + bytes(MIB)


BAT = "2DC27766-F623-4200-9D64-115E9BFD4A08"
METADATA = "8B7CA206-4790-4B9A-B8FE-575F050F886E"
PARAMETERS = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B"
SIZE = "2FA54224-CD1B-4876-B211-5DBED83BF4B8"
SECTOR = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F"
PARENT = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"


def _with_sum(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", crc32c(data)) + data[8:]


def vhdx(
    *,
    magic: bytes = b"vhdxfile",
    log: bytes = bytes(16),
    regions: Mapping[str, tuple[int, int, int]] | None = None,
    items: Mapping[str, tuple[bytes, int]] | None = None,
    blocks: tuple[int, ...] = (0,) * 64,
    damage: bool = False,
    metadata_magic: bytes = b"metadata",
) -> bytes:
    """Headers, region tables, metadata at 1 MiB, the block table at 2 MiB, one block at 3 MiB."""
    head = _with_sum(b"head" + bytes(4) + struct.pack("<Q", 1) + bytes(32) + log + bytes(4032))
    if damage:
        head = head[:100] + b"x" + head[101:]
    found = {BAT: (2 * MIB, MIB, 1), METADATA: (MIB, MIB, 1)} if regions is None else regions
    entries = b"".join(UUID(name).bytes_le + struct.pack("<QII", *place) for name, place in found.items())
    table = _with_sum((b"regi" + bytes(4) + struct.pack("<II", len(found), 0) + entries).ljust(65536, b"\0"))
    body = magic.ljust(65536, b"\0") + (head.ljust(65536, b"\0")) * 2 + table * 2
    return body.ljust(MIB, b"\0") + _vhdx_metadata(items, metadata_magic) + _vhdx_blocks(blocks) + bytes(MIB)


def vhdx_items(
    *, block: int = MIB, flags: int = 0, size: int = 64 * MIB, sector: int = 512
) -> dict[str, tuple[bytes, int]]:
    return {
        PARAMETERS: (struct.pack("<II", block, flags), 4),
        SIZE: (struct.pack("<Q", size), 6),
        SECTOR: (struct.pack("<I", sector), 6),
    }


def _vhdx_metadata(items: Mapping[str, tuple[bytes, int]] | None, magic: bytes) -> bytes:
    table, data = b"", b""
    found = vhdx_items() if items is None else items
    for name, (value, flags) in found.items():
        table += UUID(name).bytes_le + struct.pack("<IIII", 65536 + len(data), len(value), flags, 0)
        data += value
    head = (magic + bytes(2) + struct.pack("<H", len(found))).ljust(32, b"\0") + table
    return (head.ljust(65536, b"\0") + data).ljust(MIB, b"\0")


def _vhdx_blocks(blocks: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(blocks)}Q", *blocks).ljust(MIB, b"\0")


def iso(
    *,
    magic: bytes = b"CD001",
    blocks: int = 20,
    blocks_again: int | None = None,
    block: int = 2048,
    kinds: tuple[int, ...] = (1, 0, 255),
    catalog: bytes = b"\1\0" + bytes(28) + b"\x55\xaa" + bytes(32) + b"\x91\xef",
    sectors_in_file: int = 20,
    place: int = 19,
) -> bytes:
    """Volume descriptors of these kinds from sector 16, a boot catalog in sector 19."""
    body = bytes(16 * 2048)
    for kind in kinds:
        data = bytearray(2048)
        data[0:7] = bytes([kind]) + magic + b"\1"
        if kind == 0:
            data[7:39] = b"EL TORITO SPECIFICATION".ljust(32, b"\0")
            data[71:75] = struct.pack("<I", place)
        if kind == 1:
            data[40:72] = b"TEST".ljust(32)
            data[80:88] = struct.pack("<I", blocks) + struct.pack(">I", blocks_again or blocks)
            data[128:132] = struct.pack("<H", block) + struct.pack(">H", block)
        body += data
    return (body.ljust(19 * 2048, b"\0") + catalog).ljust(sectors_in_file * 2048, b"\0")
