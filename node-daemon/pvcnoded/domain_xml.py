"""From a script's checked domain XML to the one libvirt gets.

Scripts name volumes and networks; this node knows what stands behind them. Whatever decides about the host
(emulator, CPU mode, files, bridges, the console's log) is set here, whatever the script wrote.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from lxml import etree

from pvccommon.models import Json
from pvccommon.storage.pool import BackingFile, DiskSource, StoragePool
from pvcnoded.domain_policy import disk_source, find_network

FindSource = Callable[[str, str], DiskSource]  # (pool, volume) -> what stands behind it


def source_to_come(pool: str, volume: str) -> DiskSource:
    """Stands in for a volume that is not made yet: a domain with it can be defined, never started."""
    return DiskSource("file", f"/nonexistent/{pool}/{volume}", "raw")


def sources_of(pools: Mapping[str, StoragePool], media: Sequence[Json] = ()) -> FindSource:
    """The volumes as they are in the pools now; `media` are those that domains only read."""
    shared = {(cdrom["pool"], cdrom["volume"]) for cdrom in media}
    return lambda pool, volume: pools[pool].disk_source(volume, read_only=(pool, volume) in shared)


def resolve_domain(
    checked: "etree._Element",
    plan: Json,
    find_source: FindSource,
    console_log: Path,
    *,
    media: Collection[tuple[str, str]] | None = None,
) -> str:
    """The definition for libvirt, from a document that `check_domain` let pass; that one is not changed.

    `media`: the CD-ROMs to leave in, as (pool, volume); None: all. With one, a reboot ends the domain, so
    that it can be taken away before the guest starts again.
    """
    root = copy.deepcopy(checked)
    drives = [disk for disk in _drives(root) if media is None or disk_source(disk) in media]
    _remove_drives(root, keep=drives)
    if drives:
        _set_on_reboot(root, "destroy")
    for disk in drives:
        if disk.find("readonly") is None:
            etree.SubElement(disk, "readonly")
    domain = plan["domain"]
    root.set("type", domain["type"])
    for devices in root.findall("devices"):
        for emulator in devices.findall("emulator"):
            devices.remove(emulator)
    _set_cpu(root, domain)
    for disk in root.findall("devices/disk"):
        pool, volume = disk_source(disk) or ("", "")
        _set_disk(disk, find_source(pool, volume))
    for interface in root.findall("devices/interface"):
        _set_interface(interface, find_network(interface, plan) or {})
    _set_console_log(root, console_log)
    etree.indent(root)
    return etree.tostring(root, encoding="unicode")


def refresh_disks(xml: str, volumes: Sequence[Json], find_source: FindSource) -> str:
    """A VM's definition with its disks as their pools have them now.

    Operations on a volume (a snapshot, a clone made of it) can change the file behind it, so this is due
    before every start. `volumes`: [{pool, volume, disk_id}].
    """
    root = etree.fromstring(xml, etree.XMLParser(resolve_entities=False))
    by_target = {volume["disk_id"]: volume for volume in volumes}
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        volume = by_target.get("" if target is None else str(target.get("dev")))
        if volume is not None:
            _set_disk(disk, find_source(volume["pool"], volume["volume"]))
    return etree.tostring(root, encoding="unicode")


def without_media(xml: str) -> str:
    """A VM's definition without its CD-ROMs; a reboot is one again."""
    root = etree.fromstring(xml, etree.XMLParser(resolve_entities=False))
    _remove_drives(root)
    _set_on_reboot(root, "restart")
    return etree.tostring(root, encoding="unicode")


def _drives(root: "etree._Element") -> list["etree._Element"]:
    return root.findall("devices/disk[@device='cdrom']")


def _remove_drives(root: "etree._Element", keep: Collection["etree._Element"] = ()) -> None:
    for devices in root.findall("devices"):
        for disk in devices.findall("disk[@device='cdrom']"):
            if disk not in keep:
                devices.remove(disk)


def _set_on_reboot(root: "etree._Element", action: str) -> None:
    element = root.find("on_reboot")
    if element is None:
        element = etree.SubElement(root, "on_reboot")
    element.text = action


def _set_cpu(root: "etree._Element", domain: Json) -> None:
    cpu = root.find("cpu")
    topology = None if cpu is None else cpu.find("topology")
    if cpu is not None:
        root.remove(cpu)
    cpu = etree.SubElement(root, "cpu", mode=domain["cpu_mode"])
    if domain["type"] == "kvm":
        cpu.set("migratable", "on")
    vcpus = (root.findtext("vcpu") or "1").strip()
    if topology is None:
        topology = etree.Element("topology", sockets="1", cores=vcpus, threads="1")
    cpu.append(topology)


def _set_disk(disk: "etree._Element", source: DiskSource) -> None:
    for tag in ("source", "auth"):
        for element in disk.findall(tag):
            disk.remove(element)
    disk.set("type", source.type)
    driver = disk.find("driver")
    if driver is None:
        driver = etree.Element("driver", discard="unmap")
        disk.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", source.format)
    disk.insert(1, _source(source))
    for element in disk.findall("backingStore"):
        disk.remove(element)
    _add_backing(disk, 2, source.backing)


def _source(source: DiskSource) -> "etree._Element":
    if source.type == "file":
        return etree.Element("source", file=source.path)
    element = etree.Element("source", protocol=source.protocol or "", name=source.path)
    for name, port in source.hosts:
        etree.SubElement(element, "host", name=name, port=str(port))
    if source.secret:
        auth = etree.SubElement(element, "auth", username=source.user or "")
        etree.SubElement(auth, "secret", type="ceph", uuid=source.secret)
    return element


def _add_backing(parent: "etree._Element", position: int, files: Sequence[BackingFile]) -> None:
    """Name every file below a copy-on-write file, so that neither libvirt nor QEMU probes for it."""
    store = etree.Element("backingStore")
    parent.insert(position, store)
    if files:
        store.set("type", "file")
        etree.SubElement(store, "format", type=files[0].format)
        etree.SubElement(store, "source", file=files[0].path)
        _add_backing(store, 2, files[1:])


def _set_interface(interface: "etree._Element", network: Json) -> None:
    for element in interface.findall("source"):
        interface.remove(element)
    if network["user"]:
        interface.set("type", "user")
    else:
        interface.set("type", "bridge")
        interface.insert(0, etree.Element("source", bridge=network["bridge"]))


def _set_console_log(root: "etree._Element", path: Path) -> None:
    """Have the first serial port written to a log, which virtlogd keeps from growing without end."""
    serial = root.find("devices/serial")
    if serial is not None:
        serial.insert(0, etree.Element("log", file=str(path), append="off"))
