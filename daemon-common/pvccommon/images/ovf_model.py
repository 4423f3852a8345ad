"""What an OVF document says: plain data, sizes in bytes."""

from dataclasses import dataclass
from typing import Literal

ControllerKind = Literal["ide", "sata", "scsi", "nvme"]
Family = Literal["linux", "windows", "bsd", "other"]
Firmware = Literal["bios", "uefi"]
ImageFormat = Literal["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso"]


@dataclass(frozen=True)
class OvfFile:
    """A file of the package. `size_bytes` is what the document announces, None when it does not."""

    id: str
    href: str
    size_bytes: int | None


@dataclass(frozen=True)
class OvfDisk:
    """A disk of the package. Without a file it is blank; with one, `format` is that of the file."""

    id: str
    capacity_bytes: int
    file: OvfFile | None
    format: ImageFormat | None
    format_uri: str
    populated_bytes: int | None


@dataclass(frozen=True)
class Controller:
    """`model` is in small letters, as QEMU or VMware names it; empty when the document does not say."""

    instance_id: str
    kind: ControllerKind
    model: str
    address: int


@dataclass(frozen=True)
class Drive:
    """A disk in its place. `unit` is its address on the controller, None when not given."""

    disk: OvfDisk
    controller: Controller | None
    unit: int | None


@dataclass(frozen=True)
class Nic:
    """`model` is in small letters, empty when unknown; `mac` only when the document fixes it."""

    name: str
    network: str
    model: str
    mac: str | None


@dataclass(frozen=True)
class GuestOs:
    """What the document says of the guest; `cim_type` is CIM_OperatingSystem.OSType, 0 when unknown."""

    cim_type: int = 0
    description: str = ""
    family: Family = "other"


@dataclass(frozen=True)
class OvfSystem:
    """One virtual machine; `drives` in the order the firmware sees them. None where the document is silent.

    `graphics`: it has a graphics controller. `boot_order`: kinds of devices (disk, cdrom, network).
    """

    id: str
    name: str
    os: GuestOs
    vcpus: int | None
    cores_per_socket: int | None
    memory_bytes: int | None
    drives: tuple[Drive, ...]
    nics: tuple[Nic, ...]
    firmware: Firmware
    secure_boot: bool
    graphics: bool
    boot_order: tuple[str, ...]


@dataclass(frozen=True)
class Ovf:
    """A whole document. `version` is the major one, "1" or "2"."""

    version: str
    files: tuple[OvfFile, ...]
    disks: tuple[OvfDisk, ...]
    networks: tuple[str, ...]
    systems: tuple[OvfSystem, ...]
    warnings: tuple[str, ...]
