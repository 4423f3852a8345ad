"""OVF documents: descriptions of virtual machines (DMTF DSP0243, versions 1.x and 2.x).

Whatever the document says, the answer is an `Ovf` or a WrongInput with every problem in it. What is wrong (it
contradicts itself, or cannot be done) is a problem; what is only unknown, or left out here, is a warning.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from pvccommon.errors import WrongInput
from pvccommon.images.file_name import name_problem, shown, without_escapes
from pvccommon.images.findings import Findings
from pvccommon.images.guest_os import guest_os
from pvccommon.images.limits import DEFAULT_LIMITS, Limits
from pvccommon.images.ovf_elements import Reader, attribute, children, local_name, namespace, text_of
from pvccommon.images.ovf_model import (
    Firmware,
    GuestOs,
    ImageFormat,
    Ovf,
    OvfDisk,
    OvfFile,
    OvfSystem,
)
from pvccommon.images.untrusted_xml import parse_untrusted
from pvccommon.images.virtual_hardware import ITEM_TAGS, Hardware, read_hardware

if TYPE_CHECKING:
    from lxml import etree

    Element = etree._Element

WHAT: Final = "read the OVF document"
VERSIONS: Final = {
    "http://schemas.dmtf.org/ovf/envelope/1": "1",
    "http://schemas.dmtf.org/ovf/envelope/2": "2",
}
SECTIONS_OF_ENVELOPE: Final = {
    "References", "DiskSection", "NetworkSection", "DeploymentOptionSection", "VirtualSystem",
    "VirtualSystemCollection", "Strings", "EulaSection", "AnnotationSection",
}  # fmt: skip
SECTIONS_OF_SYSTEM: Final = {
    "Info", "Name", "OperatingSystemSection", "VirtualHardwareSection", "EulaSection", "AnnotationSection",
    "BootOrderSection", "Machine",
}  # fmt: skip

# Writers agree on few of these addresses; the words in them are telling.
_FORMATS: Final[tuple[tuple[re.Pattern[str], ImageFormat], ...]] = (
    (re.compile(r"vmdk"), "vmdk"),
    (re.compile(r"qcow"), "qcow2"),
    (re.compile(r"vhdx"), "vhdx"),
    (re.compile(r"vhd|bb676673"), "vhd"),
    (re.compile(r"vdi"), "vdi"),
    (re.compile(r"ecma-119|iso"), "iso"),
    (re.compile(r"raw"), "raw"),
)
_TRUE: Final = ("true", "1", "yes")


def parse_ovf(document: bytes, limits: Limits = DEFAULT_LIMITS) -> Ovf:
    """Read a document. Raises WrongInput naming every problem."""
    root = parse_untrusted(WHAT, document, limits)
    version = _version(root)
    findings = Findings()
    envelope = _Envelope(root, Reader(findings, limits))
    systems = tuple(envelope.systems())
    envelope.warn_of_unused(systems)
    findings.raise_problems(WHAT)
    return Ovf(
        version=version,
        files=tuple(envelope.files.values()),
        disks=tuple(envelope.disks.values()),
        networks=envelope.networks,
        systems=systems,
        warnings=tuple(findings.warnings),
    )


def _version(root: "Element") -> str:
    if local_name(root) != "Envelope":
        raise WrongInput(WHAT, f"its root element is <{local_name(root)[:60]}>, not <Envelope>")
    version = VERSIONS.get(namespace(root))
    if version is None:
        raise WrongInput(
            WHAT,
            f"the namespace {shown(namespace(root))} is not that of OVF 1 or 2",
            "export it again as OVF 1",
        )
    return version


class _Envelope:
    """The outermost element: first what systems refer to, then the systems."""

    def __init__(self, root: "Element", reader: Reader) -> None:
        self.root = root
        self.reader = reader
        self.findings = reader.findings
        self._warn_of_unknown(root, "Envelope", SECTIONS_OF_ENVELOPE)
        self.files = self._read_files()
        self.disks = self._read_disks()
        self.networks = self._read_networks()
        self.configuration = self._default_configuration()

    def _section_items(self, section: str, item: str) -> Iterator[tuple[str, "Element"]]:
        """Path and element of each entry of a section; a section given again is read, too."""
        found = (child for part in children(self.root, section) for child in children(part, item))
        return ((f"{section}.{item}[{index}]", element) for index, element in enumerate(found))

    def _warn_of_unknown(self, parent: "Element", path: str, known: set[str]) -> None:
        for child in parent:
            if local_name(child) not in known:
                self.findings.warn(path, f"<{local_name(child)[:60]}> is not read")

    def _identity(self, path: str, element: "Element", name: str, taken: Mapping[str, object]) -> str:
        """An id that nobody else has; the empty text, with a problem noted, otherwise."""
        identity = self.reader.name(f"{path}.{name}", attribute(element, name))
        if identity in taken:
            self.findings.wrong(f"{path}.{name}", f"{shown(identity)} is used twice")
            return ""
        return identity

    # ---- files

    def _read_files(self) -> dict[str, OvfFile]:
        files: dict[str, OvfFile] = {}
        names: set[str] = set()
        for path, element in self._section_items("References", "File"):
            identity = self._identity(path, element, "id", files)
            href = self._href(path, element)
            if href in names:
                self.findings.wrong(f"{path}.href", f"{shown(href)} is listed twice")
            if not identity or not href:
                continue
            names.add(href)
            files[identity] = OvfFile(identity, href, self._optional_number(path, element, "size"))
        return files

    def _href(self, path: str, element: "Element") -> str:
        href = without_escapes(attribute(element, "href"))
        problem = name_problem(href)
        if problem:
            self.findings.wrong(f"{path}.href", f"{shown(href)} {problem}")
            return ""
        if attribute(element, "chunkSize"):
            self.findings.wrong(f"{path}.chunkSize", "files in chunks are not read; join them")
        if attribute(element, "compression") not in ("", "identity"):
            self.findings.wrong(f"{path}.compression", "compressed files are not read; decompress them")
        return href

    def _optional_number(self, path: str, element: "Element", name: str) -> int | None:
        text = attribute(element, name)
        return self.reader.number(f"{path}.{name}", text) if text else None

    # ---- disks

    def _read_disks(self) -> dict[str, OvfDisk]:
        disks: dict[str, OvfDisk] = {}
        owners: dict[str, str] = {}
        for path, element in self._section_items("DiskSection", "Disk"):
            identity = self._identity(path, element, "diskId", disks)
            disk = self._disk(path, element, identity)
            if disk is None or not identity:
                continue
            if disk.file and disk.file.id in owners:
                owner = owners[disk.file.id]
                self.findings.wrong(f"{path}.fileRef", f"is already the file of disk {shown(owner)}")
            elif disk.file:
                owners[disk.file.id] = identity
            disks[identity] = disk
        return disks

    def _disk(self, path: str, element: "Element", identity: str) -> OvfDisk | None:
        if attribute(element, "parentRef"):
            self.findings.wrong(
                f"{path}.parentRef", "disks that stand on another disk are not read; flatten it"
            )
        file = self._file_of(path, element)
        uri = attribute(element, "format")
        capacity = self._capacity(path, element)
        image_format = self._format(path, uri) if attribute(element, "fileRef") else None
        populated = self._optional_number(path, element, "populatedSize")
        if capacity is None:
            return None
        return OvfDisk(identity, capacity, file, image_format, self.reader.remark(uri), populated)

    def _file_of(self, path: str, element: "Element") -> OvfFile | None:
        reference = attribute(element, "fileRef")
        if reference and reference not in self.files:
            self.findings.wrong(f"{path}.fileRef", f"{shown(reference)} is not in the References")
        return self.files.get(reference)

    def _capacity(self, path: str, element: "Element") -> int | None:
        unit = attribute(element, "capacityAllocationUnits")
        capacity = self.reader.size(f"{path}.capacity", attribute(element, "capacity"), unit)
        most = self.reader.limits.virtual_bytes
        if capacity is not None and not 0 < capacity <= most:
            self.findings.wrong(f"{path}.capacity", f"is {capacity} bytes; must be from 1 to {most}")
            return None
        return capacity

    def _format(self, path: str, uri: str) -> ImageFormat | None:
        for pattern, image_format in _FORMATS:
            if pattern.search(uri.lower()[:500]):
                return image_format
        self.findings.wrong(
            f"{path}.format", f"{shown(uri)} is not a format known here" if uri else "is missing"
        )
        return None

    # ---- networks, configurations

    def _read_networks(self) -> tuple[str, ...]:
        found = (
            self.reader.name(f"{path}.name", attribute(element, "name"))
            for path, element in self._section_items("NetworkSection", "Network")
        )
        return tuple(dict.fromkeys(name for name in found if name))

    def _default_configuration(self) -> str:
        """The deployment configuration that items are read for: the default one, else the first."""
        found = [element for _, element in self._section_items("DeploymentOptionSection", "Configuration")]
        default = [element for element in found if attribute(element, "default").lower() in _TRUE]
        chosen = next(iter(default or found), None)
        if chosen is None:
            return ""
        name = attribute(chosen, "id")
        if len(found) > 1:
            self.findings.warn("DeploymentOptionSection", f"of its configurations, {shown(name)} is read")
        return name

    # ---- systems

    def systems(self) -> Iterator[OvfSystem]:
        elements = list(_system_elements(self.root))
        if not elements:
            self.findings.wrong("Envelope", "has no VirtualSystem")
        most = self.reader.limits.systems
        if len(elements) > most:
            self.findings.wrong("Envelope", f"has more than {most} virtual systems")
        seen: dict[str, object] = {}
        for index, element in enumerate(elements[:most]):
            path = f"VirtualSystem[{index}]"
            identity = self._identity(path, element, "id", seen)
            seen[identity] = element
            yield self._system(path, element, identity)

    def _system(self, path: str, element: "Element", identity: str) -> OvfSystem:
        self._warn_of_unknown(element, path, SECTIONS_OF_SYSTEM)
        name = self.reader.name(
            f"{path}.Name", text_of(next(children(element, "Name"), None)), required=False
        )
        hardware = self._hardware(path, element)
        settings = dict(_settings(element))
        return OvfSystem(
            id=identity,
            name=name or identity,
            os=self._os(path, element),
            vcpus=hardware.vcpus,
            cores_per_socket=hardware.cores_per_socket,
            memory_bytes=hardware.memory_bytes,
            drives=hardware.drives,
            nics=hardware.nics,
            firmware=self._firmware(path, settings.get("firmware", "")),
            secure_boot=any(settings.get(key, "").lower() in _TRUE for key in _SECURE_BOOT_KEYS),
            graphics=hardware.graphics,
            boot_order=self._boot_order(element, settings),
        )

    def _hardware(self, path: str, element: "Element") -> Hardware:
        sections = list(children(element, "VirtualHardwareSection"))
        if not sections:
            self.findings.wrong(f"{path}.VirtualHardwareSection", "is missing")
            return Hardware(None, None, None, (), (), False)
        if len(sections) > 1:
            self.findings.warn(
                f"{path}.VirtualHardwareSection", "is given more than once; the first one counts"
            )
        where = f"{path}.VirtualHardwareSection"
        self._warn_of_unknown(sections[0], where, {*ITEM_TAGS, "Info", "System", "Config", "ExtraConfig"})
        return read_hardware(self.reader, path, sections[0], self.disks, self.networks, self.configuration)

    def _os(self, path: str, element: "Element") -> GuestOs:
        section = next(children(element, "OperatingSystemSection"), None)
        if section is None:
            return GuestOs()
        identity = attribute(section, "id")
        known = re.fullmatch(r"[0-9]{1,5}", identity, re.ASCII)
        if not known:
            self.findings.warn(f"{path}.OperatingSystemSection", f"the id {shown(identity)} is not a number")
        texts = (text_of(next(children(section, "Description"), None)), attribute(section, "osType"))
        return guest_os(int(identity) if known else 0, *map(self.reader.remark, texts))

    def _firmware(self, path: str, text: str) -> Firmware:
        if text.lower() in ("efi", "uefi", "efi64", "efi32"):
            return "uefi"
        if text.lower() not in ("", "bios"):
            self.findings.warn(path, f"the firmware {shown(text)} is not known; BIOS is taken")
        return "bios"

    def _boot_order(self, element: "Element", settings: Mapping[str, str]) -> tuple[str, ...]:
        """Kinds of devices, in small letters, first one first: disk, cdrom, network; empty when not given."""
        sections = [attribute(section, "type") for section in children(element, "BootOrderSection")]
        words = sections or settings.get("bios.bootorder", "").split(",")
        return tuple(self.reader.remark(word).lower() for word in words[:16] if word.strip())

    def warn_of_unused(self, systems: tuple[OvfSystem, ...]) -> None:
        used = {drive.disk.id for system in systems for drive in system.drives}
        for identity in self.disks:
            if identity not in used:
                self.findings.warn("DiskSection", f"disk {shown(identity)} is attached to no system")


_SECURE_BOOT_KEYS: Final = ("bootoptions.efisecurebootenabled", "uefi.secureboot.enabled")


def _system_elements(parent: "Element") -> Iterator["Element"]:
    """All systems, those of collections and nested collections included, in document order."""
    for child in parent:
        if local_name(child) == "VirtualSystem":
            yield child
        elif local_name(child) == "VirtualSystemCollection":
            yield from _system_elements(child)


def _settings(system: "Element") -> Iterator[tuple[str, str]]:
    """Key, in small letters, and value of vendors' settings: VMware's Config, VirtualBox' Firmware."""
    for machine in children(system, "Machine"):
        for hardware in children(machine, "Hardware"):
            for firmware in children(hardware, "Firmware"):
                yield "firmware", attribute(firmware, "type")
    for section in children(system, "VirtualHardwareSection"):
        for tag in ("ExtraConfig", "Config"):
            for config in children(section, tag):
                yield attribute(config, "key").lower(), attribute(config, "value")
