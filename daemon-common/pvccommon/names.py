"""Names of things: what is valid, and how one name is made from others.

Every name of a resource (volume, snapshot, NIC address) is built here and nowhere else.
"""

import hashlib
import re

# RFC 1123 host name label: the VM's name becomes the guest's host name.
VM_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Names of templates, scripts, profiles, pools: they stand in URL paths and in `key=value` texts.
OBJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DISK_ID = re.compile(r"[sv]d[a-z]{1,2}")
VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ANSWERS = "answers"  # a VM's CD-ROM for its installer, beside the ids of its disks
IMAGE_SNAPSHOT = "base"  # what VMs' disks are cloned from
VNI = re.compile(r"upstream|cluster|storage|[1-9][0-9]{0,7}")
MAX_VNI = 16_777_215  # RFC 7348: 24 bits
FILESYSTEMS = ("ext4", "ext3", "ext2", "xfs", "btrfs", "vfat", "swap")

MAC_PREFIX_TEMPLATED = "52:54:01"
MAC_PREFIX = "52:54:00"
MAC_ADDRESS = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def is_vm_name(text: str) -> bool:
    """Whether the text is a host name of one label: lower-case letters, digits and inner hyphens, 1 to 63."""
    return VM_NAME.fullmatch(text) is not None


def is_object_name(text: str) -> bool:
    return OBJECT_NAME.fullmatch(text) is not None


def is_vni(text: str) -> bool:
    return VNI.fullmatch(text) is not None and (not text.isdigit() or int(text) <= MAX_VNI)


def vm_number(name: str) -> int:
    """The numeric suffix of a VM's name, 0 when it has none: `web12` -> 12."""
    found = re.search(r"[0-9]+$", name)
    return int(found.group()) if found else 0


def volume_name(vm: str, disk_id: str) -> str:
    """The volume behind a VM's disk: `web1`, `sda` -> `web1_sda`. No VM name holds an underscore."""
    return f"{vm}_{disk_id}"


def image_volume_name(image_id: int, disk_id: str) -> str:
    """The volume behind a disk (or the "iso") of an image, by its number, so that images can be renamed.

    `5`, `sda` -> `image_5_sda`: never that of a VM, whose name would hold an underscore.
    """
    return f"image_{image_id}_{disk_id}"


def is_vm_volume(name: str) -> bool:
    """Whether `volume_name` makes such names: those of VMs' disks and answers."""
    vm, _, disk_id = name.partition("_")
    return is_vm_name(vm) and (disk_id == ANSWERS or DISK_ID.fullmatch(disk_id) is not None)


def disk_order(disk_id: str) -> tuple[int, str]:
    """Sort key that puts `sdb` before `sdaa`."""
    return len(disk_id), disk_id


def bridge_name(vni: str) -> str:
    """The bridge of a network when the configuration names none: `br<name>` or `vmbr<number>`."""
    return f"vmbr{vni}" if vni.isdigit() else f"br{vni}"


def mac_address(template: str | None, vm: str, uuid: str, index: int) -> str:
    """The address of a VM's NIC number `index` (from 0).

    With a template: `{prefix}` is 52:54:01, `{vmid}` and `{netid}` one hex digit each, as existing
    templates expect. Without: 52:54:00 and three octets derived from the VM's UUID, so that a plan is
    the same whenever it is looked at. Raises ValueError when the template does not give an address.
    """
    if template is None:
        digest = hashlib.sha256(f"{uuid}/{index}".encode()).hexdigest()
        return ":".join([MAC_PREFIX, digest[0:2], digest[2:4], digest[4:6]])
    values = {"prefix": MAC_PREFIX_TEMPLATED, "vmid": f"{vm_number(vm) % 16:x}", "netid": f"{index % 16:x}"}
    address = re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template).lower()
    if not MAC_ADDRESS.fullmatch(address):
        raise ValueError(f"the template gives {address!r}, which is not a MAC address")
    return address


def mac_template_problem(template: str) -> str | None:
    """Why a MAC template cannot be used, or None."""
    try:
        mac_address(template, "vm1", "", 0)
    except ValueError as exc:
        return str(exc)
    return None
