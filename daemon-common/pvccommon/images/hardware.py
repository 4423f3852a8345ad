"""What a guest asks for, and what it gets here: buses, network cards, firmware, size.

Data only: the tables say everything. Guests that are known to bring virtio drivers (Linux, BSD) get virtio;
others (Windows, and what is not known) get SATA and e1000e, which nearly every system can drive.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pvccommon.errors import Problem, WrongInput
from pvccommon.images.file_name import shown
from pvccommon.images.limits import GIB, MIB
from pvccommon.images.ovf_model import Drive, Firmware, Nic, Ovf, OvfSystem

Bus = Literal["scsi", "virtio", "sata"]
NicModel = Literal["virtio", "e1000", "e1000e", "rtl8139"]

DEFAULT_VCPUS: Final = 1
DEFAULT_MEMORY_BYTES: Final = 1 * GIB

# (kind, model) of the controller -> bus for a guest with virtio drivers. The empty model is any other.
DISK_BUSES: Final[Mapping[tuple[str, str], Bus]] = {
    ("ide", ""): "sata",
    ("sata", ""): "sata",
    ("scsi", ""): "scsi",
    ("scsi", "virtio"): "scsi",
    ("nvme", ""): "scsi",
    ("", ""): "scsi",
}
DISK_BUS_WITHOUT_VIRTIO: Final[Bus] = "sata"
BUS_WORDS: Final[Mapping[Bus, str]] = {"scsi": "virtio-scsi", "virtio": "virtio-blk", "sata": "SATA (AHCI)"}

# Model asked for -> (model for a guest with virtio drivers, model for one without).
NIC_MODELS: Final[Mapping[str, tuple[NicModel, NicModel]]] = {
    "virtio": ("virtio", "virtio"),
    "vmxnet3": ("virtio", "e1000e"),
    "vmxnet": ("virtio", "e1000"),
    "pcnet32": ("virtio", "rtl8139"),
    "e1000": ("e1000", "e1000"),
    "e1000e": ("e1000e", "e1000e"),
    "rtl8139": ("rtl8139", "rtl8139"),
    "": ("virtio", "e1000e"),
}
# What is the same thing here as there needs no warning.
SAME_DISK: Final = {("sata", "sata"), ("virtio", "scsi")}


@dataclass(frozen=True)
class OfferedDisk:
    """`disk_id` as in storage templates (sda, sdb, …); the size is that of the image, in whole bytes."""

    disk_id: str
    ovf_disk: str
    file: str | None
    size_bytes: int
    bus: Bus


@dataclass(frozen=True)
class OfferedNic:
    """`network` is the name in the OVF; which of ours it becomes is the operator's map."""

    network: str
    model: NicModel
    mac: str | None


@dataclass(frozen=True)
class Offer:
    """The system template and devices made from an OVF; the warnings tell what differs."""

    vcpus: int
    cores_per_socket: int | None
    memory_mib: int
    firmware: Firmware
    serial: bool
    vnc: bool
    disks: tuple[OfferedDisk, ...]
    nics: tuple[OfferedNic, ...]
    warnings: tuple[str, ...]


def choose_system(ovf: Ovf, name: str | None = None) -> OvfSystem:
    """The one system of a document, or the one of several that an id or name means. Raises WrongInput."""
    found = [system for system in ovf.systems if name is None or name in (system.id, system.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(shown(system.id) for system in ovf.systems)
    if name is None:
        raise WrongInput(
            "choose a virtual system", f"the OVF describes {len(ovf.systems)}", f"name one of {names}"
        )
    why = "more than one system is called" if found else "no system is called"
    raise WrongInput("choose a virtual system", f"{why} {shown(name)}", f"there are: {names}")


def offer_hardware(system: OvfSystem, *, virtio: bool | None = None) -> Offer:
    """Map a system onto what there is here. `virtio`: the guest has the drivers; None: by its family."""
    if virtio is None:
        virtio = system.os.family in ("linux", "bsd")
    warnings = [*_size_warnings(system), *_firmware_warnings(system), *_device_warnings(system, virtio)]
    return Offer(
        vcpus=system.vcpus or DEFAULT_VCPUS,
        cores_per_socket=system.cores_per_socket,
        memory_mib=-(-(system.memory_bytes or DEFAULT_MEMORY_BYTES) // MIB),
        firmware=system.firmware,
        serial=not system.graphics,
        vnc=system.graphics,
        disks=tuple(_disk(index, drive, virtio) for index, drive in enumerate(system.drives)),
        nics=tuple(OfferedNic(nic.network, nic_model(nic, virtio), nic.mac) for nic in system.nics),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def disk_id(index: int) -> str:
    """Name of the disk number `index`, from 0: sda, sdb, …, sdz, sdaa."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return "sd" + letters


def disk_bus(drive: Drive, virtio: bool) -> Bus:
    """The bus for a disk."""
    if not virtio:
        return DISK_BUS_WITHOUT_VIRTIO
    kind, model = (drive.controller.kind, drive.controller.model) if drive.controller else ("", "")
    return DISK_BUSES.get((kind, model)) or DISK_BUSES[kind, ""]


def nic_model(nic: Nic, virtio: bool) -> NicModel:
    """The model for a network card."""
    with_virtio, without = NIC_MODELS[nic.model]
    return with_virtio if virtio else without


def map_networks(nics: Sequence[OfferedNic], networks: Mapping[str, str]) -> tuple[str, ...]:
    """The VNI of each card, by a map of the OVF's network names. Raises WrongInput for gaps and surplus."""
    asked = dict.fromkeys(nic.network for nic in nics)
    problems = [
        *(
            Problem("networks", f"the OVF's network {shown(n)} is not mapped")
            for n in asked
            if n not in networks
        ),
        *(Problem("networks", f"the OVF has no network {shown(n)}") for n in networks if n not in asked),
    ]
    if problems:
        names = ", ".join(map(shown, asked)) or "none"
        raise WrongInput("map the networks", problems=problems, hint=f"networks of the OVF: {names}")
    return tuple(networks[nic.network] for nic in nics)


def _disk(index: int, drive: Drive, virtio: bool) -> OfferedDisk:
    disk = drive.disk
    file = disk.file.href if disk.file else None
    return OfferedDisk(disk_id(index), disk.id, file, disk.capacity_bytes, disk_bus(drive, virtio))


def _size_warnings(system: OvfSystem) -> Iterator[str]:
    if system.vcpus is None:
        yield f"the OVF names no number of processors; {DEFAULT_VCPUS} is taken"
    if system.memory_bytes is None:
        yield f"the OVF names no memory; {DEFAULT_MEMORY_BYTES // MIB} MiB are taken"
    elif system.memory_bytes % MIB:
        yield "the memory is rounded up to whole MiB"


def _firmware_warnings(system: OvfSystem) -> Iterator[str]:
    if system.secure_boot:
        yield "secure boot is asked for; the VM starts without it"


def _device_warnings(system: OvfSystem, virtio: bool) -> Iterator[str]:
    if not virtio:
        family = system.os.family if system.os.family != "other" else "unknown"
        yield f"the guest ({family}) is not expected to have virtio drivers: disks are SATA, cards emulated"
    if not system.drives:
        yield "the system has no disks"
    for drive in system.drives:
        yield from _disk_warnings(drive, disk_bus(drive, virtio))
    for nic in system.nics:
        model = nic_model(nic, virtio)
        if nic.model != model:
            yield f"network card {nic.model or 'of unknown model'} -> {model}"


def _disk_warnings(drive: Drive, bus: Bus) -> Iterator[str]:
    controller = drive.controller
    kind = controller.kind if controller else ""
    asked = (controller.model or kind) if controller else "no controller"
    if (kind, bus) in SAME_DISK or (asked, bus) in SAME_DISK:
        return
    text = f"disk controller {asked} -> {BUS_WORDS[bus]}"
    yield f"{text}: the guest's initramfs needs its driver" if bus == "scsi" else text
