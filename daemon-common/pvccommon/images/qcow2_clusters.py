"""The second level of a qcow2's tables: how many clusters of the file are in use.

Snapshots share clusters with the disk; two places of one disk never do. A file that says otherwise grows
without end when it is converted, and `qemu-img check` finds nothing wrong as long as its counts match.
"""

from functools import cache
from typing import Final

from pvccommon.images.inspection import PIECE_BYTES, Inspection

# Of an entry: bits 9 to 55 are the place in the file, bit 62 says that it is compressed.
OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00
COMPRESSED_BIT: Final = 62
# Above the place's; it is set by adding this to a place that is not 0.
USED_BIT: Final = 56
CARRY: Final = (1 << USED_BIT) - 1


class ClusterCount:
    """Counts table by table. `entry_bytes`: 8, or 16 with subclusters, whose states are the second half."""

    def __init__(self, image: Inspection, cluster: int, entry_bytes: int) -> None:
        self._image = image
        self._cluster = cluster
        self._entry_bytes = entry_bytes
        self._tables = 0
        self._used = 0

    def add_table(self, place: int) -> None:
        """Raises WrongInput as soon as there are more tables, or clusters, than the file has room for."""
        image, cluster = self._image, self._cluster
        self._tables += 1
        image.check_places("qcow2 L2 tables", self._tables, cluster)
        image.check_tables("qcow2 L2 tables", self._tables * cluster)
        for start in range(0, cluster, PIECE_BYTES):
            piece = image.read("qcow2 L2 table", place + start, min(PIECE_BYTES, cluster - start))
            self._used += used_clusters(piece, self._entry_bytes)
        image.check_places("qcow2 clusters", self._used, cluster)


def used_clusters(table: bytes, entry_bytes: int) -> int:
    """How many entries have a place in the file and are not compressed.

    All entries at once, as one long number: tables can have hundreds of millions of entries.
    """
    offsets, carries, used_bits = (
        _in_every_entry(word, len(table), entry_bytes) for word in (OFFSET_MASK, CARRY, 1 << USED_BIT)
    )
    entries = int.from_bytes(table, "big")
    used = ((entries & offsets) + carries) & used_bits
    compressed = entries >> (COMPRESSED_BIT - USED_BIT) & used
    return used.bit_count() - compressed.bit_count()


@cache
def _in_every_entry(word: int, length: int, entry_bytes: int) -> int:
    entry = word.to_bytes(8, "big").ljust(entry_bytes, b"\0")
    return int.from_bytes(entry * (length // entry_bytes), "big")
