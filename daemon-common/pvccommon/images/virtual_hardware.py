"""The hardware section of an OVF document: items become processors, memory, drives and network cards.

Resource types are those of CIM_ResourceAllocationSettingData.ResourceType.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pvccommon.images.file_name import shown
from pvccommon.images.ovf_elements import Reader, attribute, children, local_name
from pvccommon.images.ovf_model import Controller, ControllerKind, Drive, Nic, OvfDisk

if TYPE_CHECKING:
    from lxml import etree

    Element = etree._Element

ITEM_TAGS: Final = ("Item", "StorageItem", "EthernetPortItem")
PROCESSOR, MEMORY, IDE, SCSI, ETHERNET, OTHER_STORAGE, GRAPHICS = 3, 4, 5, 6, 10, 20, 24
DRIVES: Final = (17, 31)  # disk drive, logical disk
LEFT_OUT: Final = {
    1: "other device", 7: "Fibre Channel adapter", 8: "iSCSI adapter", 9: "InfiniBand adapter",
    11: "other network adapter", 12: "I/O slot", 13: "I/O device", 14: "floppy drive", 15: "CD-ROM drive",
    16: "DVD drive", 18: "tape drive", 21: "serial port", 22: "parallel port", 23: "USB controller",
    25: "FireWire controller", 35: "sound card",
}  # fmt: skip

# What writers call controllers, in small letters -> what they are.
CONTROLLERS: Final[Mapping[str, tuple[ControllerKind, str]]] = {
    "piix3": ("ide", "piix3"), "piix4": ("ide", "piix4"), "ich6": ("ide", "ich6"), "ide": ("ide", ""),
    "ahci": ("sata", "ahci"), "vmware.sata.ahci": ("sata", "ahci"), "sata": ("sata", ""),
    "lsilogic": ("scsi", "lsilogic"), "buslogic": ("scsi", "buslogic"),
    "lsilogicsas": ("scsi", "lsilogicsas"), "lsilogic sas": ("scsi", "lsilogicsas"),
    "virtualscsi": ("scsi", "pvscsi"), "pvscsi": ("scsi", "pvscsi"),
    "virtio-scsi": ("scsi", "virtio"), "virtioscsi": ("scsi", "virtio"), "virtio": ("scsi", "virtio"),
    "nvme": ("nvme", "nvme"), "vmware.nvme.controller": ("nvme", "nvme"), "nvmexpress": ("nvme", "nvme"),
}  # fmt: skip
KIND_OF_TYPE: Final[Mapping[int, ControllerKind]] = {IDE: "ide", SCSI: "scsi"}

NIC_MODELS: Final = {
    "e1000": "e1000", "82540em": "e1000", "82543gc": "e1000", "82545em": "e1000",
    "e1000e": "e1000e", "82574l": "e1000e",
    "vmxnet3": "vmxnet3", "vmxnet2": "vmxnet", "vmxnet": "vmxnet",
    "pcnet32": "pcnet32", "pcnet": "pcnet32", "am79c970a": "pcnet32", "am79c973": "pcnet32",
    "virtio": "virtio", "virtio-net": "virtio", "virtionet": "virtio",
    "rtl8139": "rtl8139",
}  # fmt: skip

_HOST_RESOURCE = re.compile(r"(?:ovf:)?/{0,2}(?P<kind>disk|file)/(?P<id>[^/]+)")
_MAC = re.compile(r"[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){5}")


@dataclass(frozen=True)
class Item:
    """One item, its fields as texts; `path` names it in messages."""

    path: str
    resource_type: int
    subtype: str
    instance_id: str
    parent: str
    address: str
    address_on_parent: str
    quantity: str
    units: str
    host_resource: str
    connection: str
    element_name: str
    cores_per_socket: str


@dataclass(frozen=True)
class Hardware:
    """What the items of one system say together; None where they say nothing."""

    vcpus: int | None
    cores_per_socket: int | None
    memory_bytes: int | None
    drives: tuple[Drive, ...]
    nics: tuple[Nic, ...]
    graphics: bool


def read_hardware(
    reader: Reader,
    path: str,
    section: "Element",
    disks: Mapping[str, OvfDisk],
    networks: tuple[str, ...],
    configuration: str,
) -> Hardware:
    """Read all items of a VirtualHardwareSection; what is wrong is noted in the reader's findings."""
    items = list(_items(reader, path, section, configuration))
    _check_instance_ids(reader, items)
    _warn_of_left_out(reader, items)
    return Hardware(
        vcpus=_total(reader, items, PROCESSOR),
        cores_per_socket=_cores_per_socket(reader, items),
        memory_bytes=_total(reader, items, MEMORY),
        drives=_drives(reader, items, disks),
        nics=_nics(reader, items, networks),
        graphics=any(item.resource_type == GRAPHICS for item in items),
    )


def _items(reader: Reader, path: str, section: "Element", configuration: str) -> Iterator[Item]:
    """Items that apply: neither bounds of a range nor of another deployment configuration."""
    elements = [child for child in section if local_name(child) in ITEM_TAGS]
    for index, element in enumerate(elements):
        where = f"{path}.{local_name(element)}[{index}]"
        wanted = attribute(element, "configuration").split()
        if wanted and configuration not in wanted:
            reader.findings.warn(where, f"is left out: it belongs to configuration {shown(wanted[0])}")
        elif attribute(element, "bound") not in ("min", "max"):
            item = _item(reader, where, element)
            if item is not None:
                yield item


def _item(reader: Reader, path: str, element: "Element") -> Item | None:
    text = {name: reader.field(path, element, name) for name in _FIELDS}
    resource_type = reader.number(f"{path}.ResourceType", text["ResourceType"])
    if resource_type is None:
        return None
    hosts, connections = list(children(element, "HostResource")), list(children(element, "Connection"))
    for name, found in (("HostResource", hosts), ("Connection", connections)):
        if len(found) > 1:
            reader.findings.warn(f"{path}.{name}", "is given more than once; the first one counts")
    units = text["VirtualQuantityUnits"]
    return Item(
        path=path,
        resource_type=resource_type,
        subtype=text["ResourceSubType"],
        instance_id=text["InstanceID"],
        parent=text["Parent"],
        address=text["Address"],
        address_on_parent=text["AddressOnParent"],
        quantity=text["VirtualQuantity"],
        units=units if units not in ("", "count") else text["AllocationUnits"],
        host_resource=(hosts[0].text or "").strip() if hosts else "",
        connection=(connections[0].text or "").strip() if connections else "",
        element_name=text["ElementName"] or text["Caption"],
        cores_per_socket=text["CoresPerSocket"],
    )


_FIELDS: Final = (
    "ResourceType", "ResourceSubType", "InstanceID", "Parent", "Address", "AddressOnParent",
    "VirtualQuantity", "VirtualQuantityUnits", "AllocationUnits", "ElementName", "Caption", "CoresPerSocket",
)  # fmt: skip


def _check_instance_ids(reader: Reader, items: list[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.instance_id and item.instance_id in seen:
            reader.findings.wrong(f"{item.path}.InstanceID", f"{shown(item.instance_id)} is used twice")
        seen.add(item.instance_id)


def _warn_of_left_out(reader: Reader, items: list[Item]) -> None:
    read = (PROCESSOR, MEMORY, IDE, SCSI, ETHERNET, OTHER_STORAGE, GRAPHICS, *DRIVES)
    for item in items:
        if item.resource_type not in read:
            name = LEFT_OUT.get(item.resource_type, f"device of the unknown type {item.resource_type}")
            reader.findings.warn(item.path, f"the {name} is left out")


def _total(reader: Reader, items: list[Item], resource_type: int) -> int | None:
    """Processors, or bytes of memory; several items add up. None when there is no item."""
    found = [item for item in items if item.resource_type == resource_type]
    values = [_quantity(reader, item) for item in found]
    if len(found) > 1:
        reader.findings.warn(found[1].path, "is added to the item of the same type before it")
    total = sum(value for value in values if value is not None)
    most = reader.limits.memory_bytes if resource_type == MEMORY else reader.limits.vcpus
    if found and None not in values and not 0 < total <= most:
        reader.findings.wrong(f"{found[0].path}.VirtualQuantity", f"gives {total}; must be from 1 to {most}")
    return total if found else None


def _quantity(reader: Reader, item: Item) -> int | None:
    path = f"{item.path}.VirtualQuantity"
    if item.resource_type != MEMORY:
        return reader.number(path, item.quantity)
    if not item.units:
        reader.findings.warn(item.path, "memory without AllocationUnits is taken as MiB")
    return reader.size(path, item.quantity, item.units or "MegaBytes")


def _cores_per_socket(reader: Reader, items: list[Item]) -> int | None:
    for item in items:
        if item.resource_type == PROCESSOR and item.cores_per_socket:
            cores = reader.number(f"{item.path}.CoresPerSocket", item.cores_per_socket)
            if cores is not None and 0 < cores <= reader.limits.vcpus:
                return cores
            reader.findings.warn(item.path, "the cores per socket are left out")
    return None


def _controllers(reader: Reader, items: list[Item]) -> dict[str, Controller]:
    """By instance id."""
    found: dict[str, Controller] = {}
    for item in items:
        if item.resource_type not in (IDE, SCSI, OTHER_STORAGE):
            continue
        subtype = item.subtype.lower()
        known = CONTROLLERS.get(subtype)
        kind = known[0] if known else KIND_OF_TYPE.get(item.resource_type)
        if kind is None:
            reader.findings.warn(item.path, f"the storage device {shown(item.subtype)} is left out")
            continue
        if subtype and not known:
            reader.findings.warn(item.path, f"the controller model {shown(item.subtype)} is not known")
        address = int(item.address) if re.fullmatch(r"[0-9]{1,4}", item.address, re.ASCII) else 0
        found[item.instance_id] = Controller(item.instance_id, kind, known[1] if known else "", address)
    return found


def _drives(reader: Reader, items: list[Item], disks: Mapping[str, OvfDisk]) -> tuple[Drive, ...]:
    """In the order a firmware finds them: controllers by address, then units; kinds as they first appear."""
    asked = [item for item in items if item.resource_type in DRIVES]
    if len(asked) > reader.limits.disks:
        reader.findings.wrong(asked[0].path, f"there are more than {reader.limits.disks} disks")
        return ()
    controllers = _controllers(reader, items)
    found: list[Drive] = []
    used: dict[str, str] = {}
    for item in asked:
        disk = _disk(reader, item, disks)
        if disk is None:
            continue
        if disk.id in used:
            reader.findings.wrong(f"{item.path}.HostResource", f"disk {shown(disk.id)} is attached twice")
        used[disk.id] = item.path
        found.append(Drive(disk, _controller_of(reader, item, controllers), _unit(reader, item)))
    _check_addresses(reader, items, found)
    return tuple(_in_order(found, list(controllers.values())))


def _disk(reader: Reader, item: Item, disks: Mapping[str, OvfDisk]) -> OvfDisk | None:
    path = f"{item.path}.HostResource"
    if not item.host_resource:
        reader.findings.warn(item.path, "the drive has no disk and is left out")
        return None
    match = _HOST_RESOURCE.fullmatch(item.host_resource)
    if match is None:
        reader.findings.wrong(path, f"{shown(item.host_resource)} does not name a disk (ovf:/disk/ID)")
    elif match["kind"] == "file":
        reader.findings.wrong(path, f"{shown(item.host_resource)} names a file instead of a disk")
    elif match["id"] not in disks:
        reader.findings.wrong(path, f"disk {shown(match['id'])} is not in the DiskSection")
    else:
        return disks[match["id"]]
    return None


def _controller_of(reader: Reader, item: Item, controllers: Mapping[str, Controller]) -> Controller | None:
    if item.parent and item.parent not in controllers:
        reader.findings.warn(
            f"{item.path}.Parent", f"{shown(item.parent)} is not a disk controller known here"
        )
    return controllers.get(item.parent)


def _unit(reader: Reader, item: Item) -> int | None:
    if not item.address_on_parent:
        return None
    return reader.number(f"{item.path}.AddressOnParent", item.address_on_parent)


def _check_addresses(reader: Reader, items: list[Item], drives: list[Drive]) -> None:
    seen: set[tuple[str, int]] = set()
    for drive in drives:
        if drive.controller is None or drive.unit is None:
            continue
        place = (drive.controller.instance_id, drive.unit)
        if place in seen:
            reader.findings.wrong(
                items[0].path.rpartition(".")[0],
                f"two disks have address {drive.unit} on controller {shown(place[0])}",
            )
        seen.add(place)


def _in_order(drives: list[Drive], controllers: list[Controller]) -> list[Drive]:
    kinds: dict[str, int] = {}
    for drive in drives:
        kinds.setdefault(drive.controller.kind if drive.controller else "", len(kinds))

    def place(drive: Drive) -> tuple[int, int, int, int]:
        controller = drive.controller
        unit = after_all if drive.unit is None else drive.unit
        if controller is None:
            return kinds[""], 0, 0, unit
        return kinds[controller.kind], controller.address, controllers.index(controller), unit

    after_all = max((drive.unit for drive in drives if drive.unit is not None), default=0) + 1
    return sorted(drives, key=place)


def _nics(reader: Reader, items: list[Item], networks: tuple[str, ...]) -> tuple[Nic, ...]:
    asked = [item for item in items if item.resource_type == ETHERNET]
    if len(asked) > reader.limits.nics:
        reader.findings.wrong(asked[0].path, f"there are more than {reader.limits.nics} network cards")
        return ()
    return tuple(_nic(reader, item, networks) for item in asked)


def _nic(reader: Reader, item: Item, networks: tuple[str, ...]) -> Nic:
    network = reader.name(f"{item.path}.Connection", item.connection, required=False)
    if not network:
        reader.findings.warn(item.path, "the network card is connected to no network")
    elif network not in networks:
        reader.findings.warn(item.path, f"network {shown(network)} is not in the NetworkSection")
    # A list of models in order of preference, by DSP0243.
    words = item.subtype.replace(",", " ").lower().split()
    model = next((NIC_MODELS[word] for word in words if word in NIC_MODELS), "")
    if words and not model:
        reader.findings.warn(item.path, f"the network card model {shown(item.subtype)} is not known")
    return Nic(reader.remark(item.element_name), network, model, _mac(reader, item))


def _mac(reader: Reader, item: Item) -> str | None:
    if not item.address:
        return None
    if not _MAC.fullmatch(item.address):
        reader.findings.warn(f"{item.path}.Address", f"{shown(item.address)} is not a MAC address")
        return None
    digits = item.address.replace(":", "").replace("-", "").lower()
    return ":".join(digits[index : index + 2] for index in range(0, 12, 2))
