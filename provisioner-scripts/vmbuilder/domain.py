"""The libvirt domain document of a VM, made from its context.

Disks and networks are named symbolically (pool and volume, VNI); the worker checks the document against
libvirt's schema and its own policy, and then puts in what they are on its node.
https://libvirt.org/formatdomain.html
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from vmbuilder.context import Context, DomainSettings, PlanCdrom, PlanNetwork, PlanVolume

_DISK_ID: Final = re.compile(r"([svh]d|xvd)([a-z]+)")
_SATA_UNITS: Final = 6  # of the controller that the machine brings
_BUS_OF_PREFIX: Final = {"sd": "scsi", "vd": "virtio", "hd": "sata", "xvd": "xen"}


@dataclass(frozen=True)
class Devices:
    """What stands for the VM's disks and networks; guests without virtio drivers need others.

    `disk_bus` None: by the first letters of the disk's name. `nic_model`: one of libvirt's. `cdrom_bus`:
    every installer has drivers for "sata", kernels made for virtual machines may have some for "scsi" only.
    `disk_buses` (by disk id) and `nic_models` (in the order of the cards) are for those that differ.
    """

    disk_bus: str | None = None
    nic_model: str = "virtio"
    cdrom_bus: str = "sata"
    disk_buses: Mapping[str, str] = field(default_factory=dict)
    nic_models: Sequence[str] = ()

    def bus_of(self, disk_id: str) -> str:
        """Bus of a disk."""
        return self.disk_buses.get(disk_id) or self.disk_bus or disk_bus(disk_id)

    def model_of(self, index: int) -> str:
        """Model of a network card, by its place from 0."""
        return self.nic_models[index] if index < len(self.nic_models) else self.nic_model


VIRTIO: Final = Devices()


def domain_xml(context: Context, kinds: Devices = VIRTIO) -> str:
    """Return the domain document: q35, virtio devices, serial console, guest agent, BIOS or UEFI.

    A CD-ROM of the plan's image comes first in the boot order, so that a blank disk is installed from it.
    """
    settings = context.domain
    domain = etree.Element("domain", type=settings.type)
    _add(domain, "name", context.vm_name)
    _add(domain, "uuid", str(context.vm_uuid))
    _add(domain, "description", f"Built from profile {context.vm_profile}")
    _add(domain, "memory", str(settings.memory_mib), unit="MiB")
    _add(domain, "currentMemory", str(settings.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(settings.vcpus), placement="static")
    orders = boot_orders(context)
    _add_firmware(domain, settings, boot_first_disk=not orders)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    _add_cpu(domain, settings)
    _add_clock(domain)
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "restart")
    devices = _add(domain, "devices")
    for volume in context.volumes:
        _add_disk(devices, volume, kinds.bus_of(volume.disk_id), orders.get(volume.disk_id))
    units = free_sata_units(context, kinds)
    for cdrom in context.cdroms:
        unit = disk_index(cdrom.disk_id) if kinds.cdrom_bus == "scsi" else next(units, None)
        _add_cdrom(devices, cdrom, kinds.cdrom_bus, unit, orders.get(cdrom.disk_id))
    _add(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    for index, network in enumerate(context.networks):
        _add_interface(devices, network, kinds.model_of(index))
    _add_consoles(devices, settings)
    _add_guest_helpers(devices)
    etree.indent(domain, space="  ")
    text: str = etree.tostring(domain, encoding="unicode")
    return text + "\n"


def disk_index(disk_id: str) -> int:
    """Place of a disk by its letters, from 0: sda 0, sdz 25, sdaa 26. Raises ValueError for other names."""
    match = _DISK_ID.fullmatch(disk_id)
    if not match:
        raise ValueError(f"disk id {disk_id!r}: expected a name like sda or vda")
    number = 0
    for letter in match[2]:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def disk_bus(disk_id: str) -> str:
    """Bus of a disk by the first letters of its name."""
    match = _DISK_ID.fullmatch(disk_id)
    return _BUS_OF_PREFIX[match[1]] if match else "scsi"


def _add(parent: etree._Element, tag: str, text: str | None = None, /, **attributes: str) -> etree._Element:
    """Append an element and return it."""
    element = etree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_firmware(domain: etree._Element, settings: DomainSettings, *, boot_first_disk: bool) -> None:
    uefi = settings.firmware == "uefi"
    os_element = _add(domain, "os", **({"firmware": "efi"} if uefi else {}))
    _add(os_element, "type", "hvm", arch=settings.architecture, machine=settings.machine)
    if uefi:
        # The boot loader our builders install is not signed, so firmware that insists on a signature is no
        # use.
        firmware = _add(os_element, "firmware")
        _add(firmware, "feature", enabled="no", name="enrolled-keys")
        _add(firmware, "feature", enabled="no", name="secure-boot")
    if boot_first_disk:
        _add(os_element, "boot", dev="hd")


def _add_cpu(domain: etree._Element, settings: DomainSettings) -> None:
    # The topology is spelled out because clients change the number of vCPUs by editing its cores.
    cpu = _add(domain, "cpu", mode=settings.cpu_mode, check="none")
    _add(cpu, "topology", sockets="1", cores=str(settings.vcpus), threads="1")


def _add_clock(domain: etree._Element) -> None:
    clock = _add(domain, "clock", offset="utc")
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="pit", tickpolicy="delay")
    _add(clock, "timer", name="hpet", present="no")


def boot_orders(context: Context) -> dict[str, int]:
    """Place in the boot order by disk id; empty when the first disk is the one to boot.

    The root disk need not be the first, which is the only one that "boot from a hard disk" would try.
    """
    media = [cdrom.disk_id for cdrom in context.cdroms if not cdrom.temporary]
    roots = [volume.disk_id for volume in context.volumes if volume.mountpoint == "/"]
    if media and not roots:
        roots = [volume.disk_id for volume in context.volumes[:1]]
    return {disk_id: place for place, disk_id in enumerate((*media, *roots), 1)}


def free_sata_units(context: Context, kinds: Devices) -> Iterator[int]:
    """Places for CD-ROMs on the machine's own SATA controller, from its end; disks have theirs by name."""
    names = (volume.disk_id for volume in context.volumes)
    used = {disk_index(name) for name in names if kinds.bus_of(name) == "sata"}
    return (unit for unit in reversed(range(_SATA_UNITS)) if unit not in used)


def _add_disk(devices: etree._Element, volume: PlanVolume, bus: str, order: int | None) -> None:
    disk = _add(devices, "disk", type="volume", device="disk")
    _add(disk, "driver", name="qemu", discard="unmap")
    _add(disk, "source", pool=volume.pool, volume=volume.volume)
    _add(disk, "target", dev=volume.disk_id, bus=bus)
    if order is not None:
        _add(disk, "boot", order=str(order))
    if bus == "scsi":
        # One controller takes all of them; left alone, libvirt adds another (of another model) after the
        # seventh.
        unit = str(disk_index(volume.disk_id))
        _add(disk, "address", type="drive", controller="0", bus="0", target="0", unit=unit)


def _add_cdrom(
    devices: etree._Element, cdrom: PlanCdrom, bus: str, unit: int | None, order: int | None
) -> None:
    disk = _add(devices, "disk", type="volume", device="cdrom")
    _add(disk, "driver", name="qemu")
    _add(disk, "source", pool=cdrom.pool, volume=cdrom.volume)
    _add(disk, "target", dev=cdrom.disk_id, bus=bus)
    _add(disk, "readonly")
    if order is not None:
        _add(disk, "boot", order=str(order))
    if unit is not None:  # else libvirt makes as many controllers as the letters of the name ask for
        _add(disk, "address", type="drive", controller="0", bus="0", target="0", unit=str(unit))


def _add_interface(devices: etree._Element, network: PlanNetwork, model: str) -> None:
    interface = _add(devices, "interface", type="network")
    _add(interface, "mac", address=network.mac)
    _add(interface, "source", network=network.vni)
    _add(interface, "model", type=model)


def _add_consoles(devices: etree._Element, settings: DomainSettings) -> None:
    if settings.serial:
        serial = _add(devices, "serial", type="pty")
        _add(serial, "target", port="0")
        console = _add(devices, "console", type="pty")
        _add(console, "target", type="serial", port="0")
    if settings.vnc:
        graphics = _add(devices, "graphics", type="vnc", port="-1", autoport="yes")
        if settings.vnc_bind:  # else libvirt's own default, which is this node only
            graphics.set("listen", settings.vnc_bind)
            _add(graphics, "listen", type="address", address=settings.vnc_bind)
        _add(_add(devices, "video"), "model", type="vga")
        _add(devices, "input", type="tablet", bus="usb")
    _add(devices, "controller", type="usb", index="0", model="qemu-xhci" if settings.vnc else "none")


def _add_guest_helpers(devices: etree._Element) -> None:
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    _add(_add(devices, "memballoon", model="virtio"), "stats", period="10")
