"""qcow2, versions 2 and 3. https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt

Numbers are big endian. The header, its extensions and the first level of the tables are checked here, and the
clusters of the second level counted: where they lie is checked by QEMU, in a sandbox, before it converts.
"""

import struct
from array import array
from typing import Final

from pvccommon.images.file_name import shown
from pvccommon.images.inspection import CONVERT_HINT, PIECE_BYTES, ImageInfo, Inspection, size_text
from pvccommon.images.limits import MIB
from pvccommon.images.qcow2_clusters import OFFSET_MASK, ClusterCount

MAGIC: Final = b"QFI\xfb"
V2_BYTES, V3_BYTES = 72, 104
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
# Limits of QEMU's own: larger tables it does not open either.
MAX_L1_BYTES: Final = 32 * MIB
MAX_REFCOUNT_TABLE_BYTES: Final = 8 * MIB
MAX_EXTENSIONS: Final = 32

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_TYPE, EXTENDED_L2 = 1, 2, 4, 8, 16
EXTENSION_DATA_FILE, EXTENSION_ENCRYPTION = 0x44415441, 0x0537BE77
COMPRESSIONS: Final = {0: "zlib", 1: "zstd"}

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")


def inspect_qcow2(image: Inspection) -> ImageInfo:
    """Raises WrongInput: backing or data file, encryption, snapshots, corruption, tables outside the file."""
    head = image.reader.read_at(0, V3_BYTES + 8)
    image.check_magic("qcow2", head, MAGIC)
    if len(head) < V2_BYTES:
        image.refuse("the qcow2 header lies outside the file; it is damaged or cut off")
    (
        _, version, backing_offset, backing_size, cluster_bits, size, encryption, l1_entries, l1_offset,
        refcount_offset, refcount_clusters, snapshots, snapshots_offset,
    ) = _V2.unpack_from(head)  # fmt: skip
    if version not in (2, 3):
        image.refuse(f"the qcow2 image has the version {version}; 2 and 3 are read", CONVERT_HINT)
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        image.refuse(f"the qcow2 image has clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are sensible")
    if encryption:
        image.refuse("the qcow2 image is encrypted", "decrypt it first")
    if backing_offset:
        _refuse_backing(image, backing_offset, backing_size)
    image.check_virtual_size(size)
    cluster = 1 << cluster_bits
    image.features.append(f"cluster {size_text(cluster)}")
    header_bytes = V2_BYTES
    if version == 3:
        header_bytes = _check_version_3(image, head, cluster)
    _check_extensions(image, header_bytes, cluster)
    _check_snapshots(image, snapshots, snapshots_offset, cluster)
    _check_table(image, "refcount table", refcount_offset, refcount_clusters * cluster, cluster)
    if not 0 < refcount_clusters * cluster <= MAX_REFCOUNT_TABLE_BYTES:
        image.refuse("the qcow2 image has a refcount table of no sensible size")
    _check_l1(image, size, cluster, cluster_bits, l1_entries, l1_offset)
    return image.info("qcow2", f"version {version}", size)


def _refuse_backing(image: Inspection, offset: int, size: int) -> None:
    name = image.reader.read_at(offset, min(size, 1023)).decode(errors="replace")
    image.refuse(f"the qcow2 image has a backing file, {shown(name)}", CONVERT_HINT)


def _check_version_3(image: Inspection, head: bytes, cluster: int) -> int:
    """Feature bits; returns the header's length."""
    if len(head) < V3_BYTES:
        image.refuse("the qcow2 header lies outside the file; it is damaged or cut off")
    header_bytes: int
    incompatible, _compatible, _autoclear, refcount_order, header_bytes = _V3.unpack_from(head, V2_BYTES)
    if not V3_BYTES <= header_bytes <= cluster or header_bytes % 8:
        image.refuse(f"the qcow2 image has a header of {header_bytes} bytes")
    if incompatible & CORRUPT:
        image.refuse("the qcow2 image is marked as corrupt", "repair it first: qemu-img check -r all FILE")
    if incompatible & EXTERNAL_DATA:
        image.refuse("the qcow2 image keeps its data in another file", CONVERT_HINT)
    unknown = incompatible & ~(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2)
    if unknown:
        image.refuse(f"the qcow2 image needs features that are not known (bits {unknown:#x})", CONVERT_HINT)
    if refcount_order > 6:
        image.refuse(f"the qcow2 image has reference counts of 2^{refcount_order} bits")
    if incompatible & DIRTY:
        # Only reference counts can be stale, and reading does not use them.
        image.warnings.append("the qcow2 image was not closed cleanly")
    if incompatible & EXTENDED_L2:
        image.features.append("subclusters")
    kind = head[V3_BYTES] if header_bytes > V3_BYTES and len(head) > V3_BYTES else 0
    if kind not in COMPRESSIONS or bool(kind) != bool(incompatible & COMPRESSION_TYPE):
        image.refuse(f"the qcow2 image has the unknown compression {kind}")
    image.features.append(f"compression {COMPRESSIONS[kind]}")
    return header_bytes


def _check_extensions(image: Inspection, offset: int, cluster: int) -> None:
    end = min(cluster, image.reader.size_bytes)
    for _ in range(MAX_EXTENSIONS):
        if offset + 8 > end:
            return
        kind, length = struct.unpack(">II", image.read("qcow2 header extension", offset, 8))
        if kind == 0:
            return
        if kind == EXTENSION_DATA_FILE:
            image.refuse("the qcow2 image names an external data file", CONVERT_HINT)
        if kind == EXTENSION_ENCRYPTION:
            image.refuse("the qcow2 image is encrypted", "decrypt it first")
        offset += 8 + length + -length % 8
        if offset > cluster:
            image.refuse("the qcow2 image has a header extension that is longer than its cluster")
    image.refuse(f"the qcow2 image has more than {MAX_EXTENSIONS} header extensions")


def _check_snapshots(image: Inspection, count: int, offset: int, cluster: int) -> None:
    most = image.limits.snapshots
    if count > most:
        image.refuse(f"the qcow2 image has {count} snapshots; at most {most} are accepted", CONVERT_HINT)
    if count:
        # 40 bytes is the least an entry can take.
        _check_table(image, "snapshot table", offset, 40 * count, cluster)
        image.features.append(f"snapshots {count}")
        image.warnings.append("the qcow2 image's snapshots are left out")


def _check_table(image: Inspection, name: str, offset: int, length: int, cluster: int) -> None:
    if offset == 0 or offset % cluster:
        image.refuse(f"the qcow2 {name} is at {offset}, where no cluster begins")
    image.check_inside(f"qcow2 {name}", offset, length)


def _check_l1(
    image: Inspection, size: int, cluster: int, cluster_bits: int, entries: int, offset: int
) -> None:
    """The first level: as long as the disk needs, every entry inside the file; the second is counted."""
    # An L2 table fills a cluster; entries are 8 bytes, 16 with subclusters.
    entry_bits = 4 if "subclusters" in image.features else 3
    needed = -(-size // (1 << (2 * cluster_bits - entry_bits)))
    if entries < needed or 8 * entries > MAX_L1_BYTES:
        image.refuse(f"the qcow2 image has an L1 table of {entries} entries; its size needs {needed}")
    _check_table(image, "L1 table", offset, 8 * entries, cluster)
    last = image.reader.size_bytes - cluster
    count = ClusterCount(image, cluster, 1 << entry_bits)
    for start in range(0, 8 * entries, PIECE_BYTES):
        table = array(
            "Q", image.read("qcow2 L1 table", offset + start, min(PIECE_BYTES, 8 * entries - start))
        )
        table.byteswap()
        for entry in table:
            place = entry & OFFSET_MASK
            if place and (place % cluster or place > last):
                image.refuse(f"the qcow2 L1 table points to {place}, which is no cluster of the file")
            if place:
                count.add_table(place)
