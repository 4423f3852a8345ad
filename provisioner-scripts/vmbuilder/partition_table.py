"""The partition table of a disk that came from elsewhere, as sfdisk(8) shows it.

Nothing in it is believed: what sfdisk says is checked here, and what this package does not understand is left
alone. See vmbuilder.partitions for the table we make ourselves.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from vmbuilder.command import run
from vmbuilder.errors import ProvisioningError
from vmbuilder.partitions import MIB, SECTOR_BYTES, Partition

GPT: Final = "gpt"
MBR: Final = "dos"
MAX_PARTITIONS: Final = 16  # as many as the broker tells the kernel of
MAX_NUMBER: Final = 128
_SFDISK_TIMEOUT_S: Final = 60
# Kinds of an MBR's entries (in hexadecimal): those that hold further ones, and the one that stands for a GPT.
_EXTENDED: Final = ("5", "f", "85")
_FIRST_LOGICAL: Final = 5
_PROTECTIVE: Final = "ee"
# The numbers of an MBR have 32 bits.
_MBR_LIMIT_BYTES: Final = (2**32 - 1) * SECTOR_BYTES
_MAX_TEXT: Final = 64


class NotUnderstood(ProvisioningError):
    """What is on the disk is nothing this package dares to change."""


@dataclass(frozen=True)
class PartitionTable:
    """`partitions` in the order of their places; a table of kind `dos` shows logical ones from number 5."""

    label: str
    disk_bytes: int
    partitions: tuple[Partition, ...]
    types: Mapping[int, str]

    @property
    def last(self) -> Partition:
        """The partition behind which nothing comes."""
        return self.partitions[-1]

    def grown(self) -> "PartitionTable | None":
        """The table with its last partition up to the end of the disk; None when there is no MiB to win.

        The last MiB of a GPT stays free for its second copy.
        """
        last = self.last
        if self.label == MBR and last.number >= _FIRST_LOGICAL:
            raise NotUnderstood("the last partition is a logical one")
        usable = self.disk_bytes - MIB if self.label == GPT else min(self.disk_bytes, _MBR_LIMIT_BYTES)
        size = usable // MIB * MIB - last.start_bytes
        if size < last.size_bytes + MIB:
            return None
        return replace(self, partitions=(*self.partitions[:-1], replace(last, size_bytes=size)))


def read_table(device: str, disk_bytes: int) -> PartitionTable | None:
    """The table on a block device, None when there is none. Raises NotUnderstood."""
    done = run(["sfdisk", "--json", device], ok=(0, 1), timeout_s=_SFDISK_TIMEOUT_S, quiet=True)
    if done.returncode or not done.stdout.strip():
        return None
    try:
        document = json.loads(done.stdout)
    except (ValueError, RecursionError) as exc:
        raise NotUnderstood("the partition table cannot be read: sfdisk shows no proper JSON") from exc
    return parse_table(document, device, disk_bytes)


def write_last(device: str, table: PartitionTable) -> None:
    """Give the last partition the place it has in `table`; everything else stays, boot code and ids too.

    sfdisk moves the second copy of a GPT to the end of the disk. The kernel is told by the broker.
    Raises NotUnderstood when the disk does not show that table afterwards.
    """
    last = table.last
    argv = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never"]
    argv += ["--wipe-partitions", "never", "-N", str(last.number), device]
    line = f"start={last.start_bytes // SECTOR_BYTES}, size={last.size_bytes // SECTOR_BYTES}\n"
    run(argv, input=line, timeout_s=_SFDISK_TIMEOUT_S, quiet=True)
    if read_table(device, table.disk_bytes) != table:
        raise NotUnderstood("the partition table is not what was written")


def parse_table(document: Any, device: str, disk_bytes: int) -> PartitionTable:
    """Check what `sfdisk --json` says of a device. Raises NotUnderstood."""
    table = document.get("partitiontable") if isinstance(document, dict) else None
    if not isinstance(table, dict):
        raise NotUnderstood("the partition table cannot be read: sfdisk shows none")
    label = table.get("label")
    if label not in (GPT, MBR):
        raise NotUnderstood(f"partition tables of kind {_text(label)} are not known here")
    if table.get("unit") != "sectors" or table.get("sectorsize", SECTOR_BYTES) != SECTOR_BYTES:
        raise NotUnderstood(f"the partition table does not count in sectors of {SECTOR_BYTES} bytes")
    entries = table.get("partitions")
    if not isinstance(entries, list) or not entries:
        raise NotUnderstood("the partition table is empty")
    if len(entries) > MAX_PARTITIONS:
        raise NotUnderstood(f"there are {len(entries)} partitions, more than {MAX_PARTITIONS}")
    found = [_entry(entry, device) for entry in entries]
    if label == MBR:
        if any(kind == _PROTECTIVE for _, kind in found):
            raise NotUnderstood("the partition table announces a GPT, which is not there")
        found = [(part, kind) for part, kind in found if kind not in _EXTENDED]
    partitions = sorted((part for part, _ in found), key=lambda part: part.start_bytes)
    _check_places(partitions, disk_bytes)
    return PartitionTable(label, disk_bytes, tuple(partitions), {part.number: kind for part, kind in found})


def _entry(entry: Any, device: str) -> tuple[Partition, str]:
    if not isinstance(entry, dict):
        raise NotUnderstood("the partition table has an entry that is none")
    node = entry.get("node")
    rest = node.removeprefix(device) if isinstance(node, str) and node.startswith(device) else ""
    match = re.fullmatch(r"p?([1-9][0-9]{0,2})", rest, re.ASCII)
    if not match or int(match[1]) > MAX_NUMBER:
        raise NotUnderstood(f"the partition table has an entry of name {_text(node)}")
    start, size = _sectors(entry, "start"), _sectors(entry, "size")
    kind = str(entry.get("type"))[:_MAX_TEXT].lower()
    return Partition(int(match[1]), start * SECTOR_BYTES, size * SECTOR_BYTES), kind


def _sectors(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if type(value) is not int or not 0 < value < 2**63 // SECTOR_BYTES:
        raise NotUnderstood(f"the partition table has an entry with the {name} {_text(value)}")
    return value


def _check_places(partitions: Sequence[Partition], disk_bytes: int) -> None:
    if not partitions:
        raise NotUnderstood("the partition table is empty")
    if len({part.number for part in partitions}) != len(partitions):
        raise NotUnderstood("two partitions have one number")
    for before, after in pairwise(partitions):
        if before.start_bytes + before.size_bytes > after.start_bytes:
            raise NotUnderstood(f"partitions {before.number} and {after.number} overlap")
    last = partitions[-1]
    if last.start_bytes + last.size_bytes > disk_bytes:
        raise NotUnderstood(f"partition {last.number} reaches beyond the end of the disk")


def _text(value: object) -> str:
    return ascii(value)[:_MAX_TEXT]
