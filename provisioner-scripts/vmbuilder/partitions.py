"""The partition table of a root disk: one that boots by BIOS and by UEFI.

1   1 MiB    what the BIOS starts: GRUB's core, or FreeBSD's gptboot
2   64 MiB   EFI system partition
3   the rest root file system; last, so that it can grow with the disk
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmbuilder.command import run
from vmbuilder.errors import ValidationError

MIB: Final = 1024 * 1024
SECTOR_BYTES: Final = 512

BIOS_BOOT: Final = 1
EFI_SYSTEM: Final = 2
ROOT: Final = 3


@dataclass(frozen=True)
class Scheme:
    """What a kind of system wants its three partitions to be; `names` are GPT labels, where it needs some."""

    types: Mapping[int, str]
    names: Mapping[int, str] = field(default_factory=dict)
    bios_boot_bytes: int = MIB


# Partition types: UEFI specification 2.10, table 5-7; GRUB manual, "BIOS installation"; the root type is that
# of the Discoverable Partitions Specification for x86-64; gpart(8) of FreeBSD.
_EFI_SYSTEM_TYPE: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX: Final = Scheme(
    {
        BIOS_BOOT: "21686148-6449-6E6F-744E-656564454649",
        EFI_SYSTEM: _EFI_SYSTEM_TYPE,
        ROOT: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
    }
)
# Its pmbr loads the whole boot partition, and refuses one of more than 545 KiB (gptboot(8)).
FREEBSD: Final = Scheme(
    {
        BIOS_BOOT: "83BD6B9D-7F41-11DC-BE0B-001560B84F0F",
        EFI_SYSTEM: _EFI_SYSTEM_TYPE,
        ROOT: "516E7CB6-6ECF-11D6-8FF8-00022D09712B",
    },
    {BIOS_BOOT: "gptboot0", EFI_SYSTEM: "efiboot0", ROOT: "rootfs"},
    512 * 1024,
)
_SMALLEST_ROOT_BYTES: Final = 256 * MIB


@dataclass(frozen=True)
class Partition:
    """A partition's place on its disk, in bytes."""

    number: int
    start_bytes: int
    size_bytes: int

    def as_request(self) -> dict[str, int]:
        """As the broker's verb volume.partitions takes it."""
        return {"number": self.number, "start_bytes": self.start_bytes, "size_bytes": self.size_bytes}


def root_disk_layout(disk_bytes: int, scheme: Scheme = LINUX) -> tuple[Partition, ...]:
    """Where the three partitions of a disk of this size lie, each beginning at a whole MiB.

    The last MiB stays free for the second copy of the table. Raises ValidationError when the disk is too
    small.
    """
    starts = {BIOS_BOOT: MIB, EFI_SYSTEM: 2 * MIB, ROOT: 66 * MIB}
    end = disk_bytes // MIB * MIB - MIB
    if end - starts[ROOT] < _SMALLEST_ROOT_BYTES:
        needed = (starts[ROOT] + _SMALLEST_ROOT_BYTES + MIB) // MIB
        raise ValidationError(f"root disk of {disk_bytes // MIB} MiB is too small: {needed} MiB is the least")
    ends = {BIOS_BOOT: starts[BIOS_BOOT] + scheme.bios_boot_bytes, EFI_SYSTEM: starts[ROOT], ROOT: end}
    return tuple(Partition(number, starts[number], ends[number] - starts[number]) for number in starts)


def table_script(layout: Sequence[Partition], scheme: Scheme = LINUX) -> str:
    """The table as input for sfdisk(8)."""
    lines = ["label: gpt", "unit: sectors", f"sector-size: {SECTOR_BYTES}"]
    for part in layout:
        start, size = part.start_bytes // SECTOR_BYTES, part.size_bytes // SECTOR_BYTES
        name = f', name="{scheme.names[part.number]}"' if part.number in scheme.names else ""
        lines.append(f"{part.number} : start={start}, size={size}, type={scheme.types[part.number]}{name}")
    return "\n".join(lines) + "\n"


def write_table(device: str, layout: Sequence[Partition], scheme: Scheme = LINUX) -> None:
    """Write the table. The kernel is told by the broker afterwards, as the sandbox may not do that itself."""
    argv = ["sfdisk", "--quiet", "--wipe", "always", "--no-reread", "--no-tell-kernel", device]
    run(argv, input=table_script(layout, scheme), timeout_s=60)
