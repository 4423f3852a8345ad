"""How much of a stranger's input is read before it is refused."""

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
TIB: Final = 1024**4


@dataclass(frozen=True)
class Limits:
    """Generous for every honest image, small enough that refusing costs little."""

    # OVF documents
    ovf_bytes: int = 4 * MIB
    xml_depth: int = 32
    xml_elements: int = 20_000
    xml_attributes: int = 64  # of one element: libxml2 compares each with each
    xml_text_chars: int = 512 * KIB  # of one text or attribute: licences are long
    name_chars: int = 255
    systems: int = 64
    disks: int = 64  # of one system
    nics: int = 32  # of one system
    vcpus: int = 1024
    memory_bytes: int = 64 * TIB
    # Archives
    members: int = 1000
    member_bytes: int = 16 * TIB
    manifest_bytes: int = 1 * MIB
    # Disk images
    virtual_bytes: int = 16 * TIB
    table_bytes: int = 2 * GIB  # of the second level: what 16 TiB need in clusters of 64 KiB
    snapshots: int = 16


DEFAULT_LIMITS: Final = Limits()
