"""VMDK streams, marker by marker: tables behind the grains (VMware) or before them (qemu-img)."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

SECTOR = 512
GRAIN_SECTORS = 128
GRAIN = GRAIN_SECTORS * SECTOR
AT_END = 2**64 - 1
EOS, TABLE, DIRECTORY, FOOTER = 0, 1, 2, 3
OVERHEAD = 128


def sectors(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def descriptor(
    capacity: int,
    *,
    create_type: str = "streamOptimized",
    parent: str = "ffffffff",
    extents: str | None = None,
    more: str = "",
) -> bytes:
    lines = f'RW {capacity} SPARSE "disk.vmdk"' if extents is None else extents
    return f"""# Disk DescriptorFile
version=1
CID=12345678
parentCID={parent}
createType="{create_type}"
# Extent description
{lines}
{more}
# The Disk Data Base
#DDB
ddb.adapterType = "lsilogic"
""".encode()


def header(
    capacity: int,
    *,
    magic: bytes = b"KDMV",
    version: int = 3,
    flags: int = 0x30001,
    grain: int = GRAIN_SECTORS,
    descriptor_at: int = 1,
    descriptor_size: int = 20,
    entries: int = 512,
    redundant: int = 0,
    directory: int = AT_END,
    overhead: int = OVERHEAD,
    line_ends: bytes = b"\n \r\n",
    compression: int = 1,
) -> bytes:
    fields = (magic, version, flags, capacity, grain, descriptor_at, descriptor_size, entries, redundant)
    packed = struct.pack("<4sIIQQQQIQQQB4sH", *fields, directory, overhead, 0, line_ends, compression)
    return sectors(packed)


def grain(sector: int, data: bytes, *, compressed: bytes | None = None, size: int | None = None) -> bytes:
    packed = zlib.compress(data, 1) if compressed is None else compressed
    return sectors(struct.pack("<QI", sector, len(packed) if size is None else size) + packed)


def marker(kind: int, count: int, data: bytes = b"") -> bytes:
    return sectors(struct.pack("<QII", count, 0, kind)) + data


def front(capacity: int, *, text: bytes | None = None, **fields: Any) -> bytes:
    """Header and descriptor, as far as the first grain."""
    body = header(capacity, **fields) + sectors(descriptor(capacity) if text is None else text)
    return body + bytes(OVERHEAD * SECTOR - len(body))


def tables(positions: Mapping[int, int], capacity: int) -> list[bytes]:
    """All grain tables of a disk, from grain number to sector."""
    count = -(-capacity // (GRAIN_SECTORS * 512))
    found = [[0] * 512 for _ in range(count)]
    for number, position in positions.items():
        found[number // 512][number % 512] = position
    return [struct.pack("<512I", *table) for table in found]


def stream(
    grains: Mapping[int, bytes],
    capacity: int,
    *,
    parts: Sequence[bytes] | None = None,
    lie: Mapping[int, int] | None = None,
    footer: bytes | None = None,
    end: bytes = bytes(SECTOR),
    **fields: object,
) -> bytes:
    """As VMware writes it. `parts` replaces the grains' bytes, `lie` entries of the tables."""
    body = front(capacity, **fields)
    positions = {}
    for number, data in grains.items():
        positions[number] = len(body) // SECTOR
        body += grain(number * GRAIN_SECTORS, data)
    if parts is not None:
        body = front(capacity, **fields) + b"".join(parts)
    directory = []
    for table in tables({**positions, **(lie or {})}, capacity):
        directory.append(len(body) // SECTOR + 1 if any(table) else 0)
        body += marker(TABLE, 4, table) if any(table) else b""
    entries = sectors(struct.pack(f"<{len(directory)}I", *directory))
    place = len(body) // SECTOR + 1
    body += marker(DIRECTORY, len(entries) // SECTOR, entries)
    last = header(capacity, directory=place) if footer is None else footer
    return body + (marker(FOOTER, 1, last) if last else b"") + end


def stream_with_tables_first(grains: Mapping[int, bytes], capacity: int, *, end: bytes = b"") -> bytes:
    """As qemu-img writes it: header, descriptor, tables twice, grains, and no end mark."""
    count = -(-capacity // (GRAIN_SECTORS * 512))
    directory_sectors = -(-4 * count // SECTOR)
    first = 21
    second = first + directory_sectors + 4 * count
    overhead = -(-(second + directory_sectors + 4 * count) // GRAIN_SECTORS) * GRAIN_SECTORS
    body, positions = b"", {}
    for number, data in grains.items():
        positions[number] = overhead + len(body) // SECTOR
        body += grain(number * GRAIN_SECTORS, data)
    head = header(capacity, flags=0x30003, redundant=first, directory=second, overhead=overhead)
    head += sectors(descriptor(capacity)).ljust(20 * SECTOR, b"\0")
    for place in (first, second):
        entries = [place + directory_sectors + 4 * number for number in range(count)]
        head += sectors(struct.pack(f"<{count}I", *entries)) + b"".join(tables(positions, capacity))
    return head.ljust(overhead * SECTOR, b"\0") + body + end
