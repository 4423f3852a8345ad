"""What the domain XML a script returns may hold.

The document is as untrusted as the script: it is parsed without entities, checked against libvirt's own
RELAX-NG schema, then against the table below. What the table does not name is refused: a host file or device,
a QEMU command line, a security label or a foreign volume needs no rule of its own.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from lxml import etree

from pvccommon.errors import Problem, WrongInput
from pvccommon.models import Json

SCHEMA = "/usr/share/libvirt/schemas/domain.rng"
MAX_XML_BYTES = 256 * 1024
MAX_DEVICES = 256
MIB = 1024**2

# Units of libvirt's <memory>: https://libvirt.org/formatdomain.html#memory-allocation
MEMORY_UNITS = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20,
    "GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40,
}  # fmt: skip

ANY = re.compile(r"[^\0]{0,256}")
WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
NUMBER = re.compile(r"(0x)?[0-9a-fA-F]{1,16}")
GUEST_AGENT = re.compile(r"org\.qemu\.guest_agent\.0")
YES_NO = re.compile(r"yes|no|on|off")
PCI_ADDRESS = {
    "type": WORD,
    **dict.fromkeys(
        ("domain", "bus", "slot", "function", "controller", "target", "unit", "port", "multifunction"), WORD
    ),
}

# Element (path below <domain>) -> attributes allowed on it, each with the pattern of its value.
ALLOWED: Mapping[str, Mapping[str, re.Pattern[str]]] = {
    "": {"type": re.compile(r"kvm|qemu")},
    "name": {},
    "uuid": {},
    "title": {},
    "description": {},
    "memory": {"unit": WORD},
    "currentMemory": {"unit": WORD},
    "vcpu": {"placement": re.compile("static")},
    "iothreads": {},
    "cpu": {"mode": WORD, "match": WORD, "check": WORD, "migratable": YES_NO},
    "cpu/model": {"fallback": WORD},
    "cpu/topology": dict.fromkeys(("sockets", "dies", "cores", "threads"), NUMBER),
    "cpu/feature": {"policy": WORD, "name": WORD},
    "os": {"firmware": re.compile(r"bios|efi")},
    "os/type": {"arch": WORD, "machine": WORD},
    "os/boot": {"dev": re.compile(r"hd|cdrom|network")},
    "os/bootmenu": {"enable": YES_NO, "timeout": NUMBER},
    "os/bios": {"useserial": YES_NO, "rebootTimeout": NUMBER},
    "os/firmware": {},
    "os/firmware/feature": {"enabled": YES_NO, "name": WORD},
    "features": {},
    "features/acpi": {},
    "features/apic": {"eoi": YES_NO},
    "features/pae": {},
    "features/smm": {"state": YES_NO},
    "features/vmport": {"state": YES_NO},
    "clock": {"offset": re.compile(r"utc|localtime")},
    "clock/timer": {"name": WORD, "tickpolicy": WORD, "present": YES_NO},
    "on_poweroff": {},
    "on_reboot": {},
    "on_crash": {},
    "pm": {},
    "pm/suspend-to-mem": {"enabled": YES_NO},
    "pm/suspend-to-disk": {"enabled": YES_NO},
    "devices": {},
    "devices/emulator": {},
    "devices/disk": {"type": re.compile(r"volume|network"), "device": re.compile(r"disk|cdrom")},
    "devices/disk/driver": {
        "name": re.compile("qemu"), "type": re.compile("raw"),
        **dict.fromkeys(("discard", "cache", "io", "detect_zeroes"), WORD),
    },
    "devices/disk/auth": {"username": WORD},
    "devices/disk/auth/secret": {"type": re.compile("ceph"), "uuid": WORD},
    "devices/disk/source": {"pool": WORD, "volume": ANY, "protocol": re.compile("rbd"), "name": ANY},
    "devices/disk/source/host": {"name": WORD, "port": NUMBER},
    "devices/disk/target": {"dev": re.compile(r"[sv]d[a-z]{1,2}"), "bus": re.compile(r"scsi|virtio|sata")},
    "devices/disk/boot": {"order": NUMBER},
    "devices/disk/serial": {},
    "devices/disk/readonly": {},
    "devices/disk/address": PCI_ADDRESS,
    "devices/controller": {"type": WORD, "index": NUMBER, "model": WORD},
    "devices/controller/model": {"name": WORD},
    "devices/controller/target": {"chassis": NUMBER, "port": NUMBER},
    "devices/controller/driver": {"queues": NUMBER},
    "devices/controller/address": PCI_ADDRESS,
    "devices/interface": {"type": re.compile(r"network|bridge")},
    "devices/interface/mac": {"address": re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")},
    "devices/interface/source": {"network": WORD, "bridge": WORD},
    "devices/interface/model": {"type": re.compile(r"virtio|e1000|e1000e|rtl8139")},
    "devices/interface/mtu": {"size": NUMBER},
    "devices/interface/address": PCI_ADDRESS,
    "devices/serial": {"type": re.compile("pty")},
    "devices/serial/target": {"type": WORD, "port": NUMBER},
    "devices/serial/target/model": {"name": WORD},
    "devices/console": {"type": re.compile("pty")},
    "devices/console/target": {"type": WORD, "port": NUMBER},
    "devices/channel": {"type": re.compile("unix")},
    "devices/channel/target": {"type": re.compile("virtio"), "name": GUEST_AGENT},
    "devices/channel/address": PCI_ADDRESS,
    "devices/input": {"type": re.compile(r"tablet|mouse|keyboard"), "bus": re.compile(r"usb|ps2|virtio")},
    "devices/input/address": PCI_ADDRESS,
    "devices/graphics": {
        "type": re.compile("vnc"), "port": re.compile(r"-1|[0-9]{1,5}"), "autoport": YES_NO, "listen": WORD,
    },
    "devices/graphics/listen": {"type": re.compile("address"), "address": WORD},
    "devices/video": {},
    "devices/video/model": {"type": WORD, "vram": NUMBER, "heads": NUMBER, "primary": YES_NO},
    "devices/video/address": PCI_ADDRESS,
    "devices/memballoon": {"model": WORD},
    "devices/memballoon/stats": {"period": NUMBER},
    "devices/memballoon/address": PCI_ADDRESS,
    "devices/rng": {"model": re.compile("virtio")},
    "devices/rng/backend": {"model": re.compile("random")},
    "devices/rng/rate": {"bytes": NUMBER, "period": NUMBER},
    "devices/rng/address": PCI_ADDRESS,
    "devices/watchdog": {"model": WORD, "action": WORD},
    "devices/panic": {"model": WORD},
}  # fmt: skip


def check_domain(xml: str, plan: Json) -> "etree._Element":
    """Parse and check a script's domain XML against schema, table and plan.

    Returns the parsed document. Raises WrongInput naming every offending element and rule.
    """
    what = "check the domain XML"
    if len(xml.encode(errors="replace")) > MAX_XML_BYTES:
        raise WrongInput(what, f"it is larger than {MAX_XML_BYTES} bytes")
    try:
        parser = etree.XMLParser(
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )
        root = etree.fromstring(xml.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as exc:
        raise WrongInput(what, f"create() did not return well-formed XML: {exc}") from exc
    if "<!DOCTYPE" in xml:
        raise WrongInput(what, "it has a DOCTYPE", "leave the document type and its entities out")
    if root.tag != "domain":
        raise WrongInput(what, f"its root element is <{root.tag}>, not <domain>")
    schema = _schema()
    if not schema.validate(root):
        # The first error is about the outermost element; the last one is where the document goes wrong.
        raise WrongInput(
            what, f"libvirt's schema refuses it: {schema.error_log[-1].message}", "see: virt-xml-validate"
        )
    problems = [*_check_table(root), *_check_plan(root, plan)]
    if problems:
        raise WrongInput(what, problems=problems, hint="use self.domain_xml(), or leave out what is named")
    return root


@cache
def _schema() -> "etree.RelaxNG":
    return etree.RelaxNG(etree.parse(SCHEMA))


def _check_table(root: "etree._Element") -> Iterator[Problem]:
    for element in root.iter():
        path = _path(element)
        allowed = ALLOWED.get(path)
        if allowed is None:
            yield Problem(f"<{path}>", "this element is not allowed in a builder's domain")
            continue
        for name, value in element.attrib.items():
            pattern = allowed.get(_text(name))
            if pattern is None:
                yield Problem(
                    f"<{path}> {_text(name)}", "this attribute is not allowed in a builder's domain"
                )
            elif not pattern.fullmatch(_text(value)):
                yield Problem(f"<{path}> {_text(name)}", f"the value {_text(value)[:60]!r} is not allowed")


def _path(element: "etree._Element") -> str:
    """`devices/disk/source` for an element; the root is the empty text."""
    names = [str(e.tag) for e in (element, *element.iterancestors())]
    return "/".join(reversed(names[:-1]))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _check_plan(root: "etree._Element", plan: Json) -> Iterator[Problem]:
    yield from _check_identity(root, plan)
    yield from _check_size(root, plan)
    yield from _check_disks(root, plan)
    yield from _check_networks(root, plan)
    yield from _check_consoles(root, plan)


def _check_identity(root: "etree._Element", plan: Json) -> Iterator[Problem]:
    for tag in ("name", "uuid"):
        found = (root.findtext(tag) or "").strip()
        if found.lower() != plan["vm"][tag].lower():
            yield Problem(f"<{tag}>", f"is {found[:60]!r}; the plan says {plan['vm'][tag]!r}")
    for element in root.findall("devices/emulator"):
        if not re.fullmatch(r"/usr/bin/(qemu-system-[a-z0-9_]+|kvm)", (element.text or "").strip()):
            yield Problem("<devices/emulator>", "is not a QEMU of this system")


def _check_size(root: "etree._Element", plan: Json) -> Iterator[Problem]:
    planned_mib, planned_cpus = plan["domain"]["memory_mib"], plan["domain"]["vcpus"]
    for tag in ("memory", "currentMemory"):
        for element in root.findall(tag):
            text = (element.text or "").strip()
            factor = MEMORY_UNITS.get(element.get("unit", "KiB"))
            size = int(text) * factor if factor and text.isdigit() else None
            if size is None or not 0 < size <= planned_mib * MIB:
                yield Problem(f"<{tag}>", f"must be at most the planned {planned_mib} MiB")
    vcpus = (root.findtext("vcpu") or "").strip()
    if not vcpus.isdigit() or not 0 < int(vcpus) <= planned_cpus:
        yield Problem("<vcpu>", f"must be from 1 to the planned {planned_cpus}")
    if len(root.findall("devices/*")) > MAX_DEVICES:
        yield Problem("<devices>", f"holds more than {MAX_DEVICES} devices")


def _check_disks(root: "etree._Element", plan: Json) -> Iterator[Problem]:
    planned = {(volume["pool"], volume["volume"]): "disk" for volume in plan["volumes"]}
    planned |= {(cdrom["pool"], cdrom["volume"]): "cdrom" for cdrom in plan.get("cdroms", ())}
    seen: set[tuple[str, str]] = set()
    for index, disk in enumerate(root.findall("devices/disk")):
        source = disk_source(disk)
        path = f"<devices/disk>[{index}]"
        if source is None:
            yield Problem(path, "has no source, or not one of a pool and a volume")
        elif source not in planned:
            yield Problem(path, f"volume {'/'.join(source)[:80]} is not one of this build's")
        elif disk.get("device", "disk") != planned[source]:
            yield Problem(path, f"volume {'/'.join(source)} can only be a {planned[source]}")
        elif source in seen:
            yield Problem(path, f"volume {'/'.join(source)} is attached twice")
        else:
            seen.add(source)


def disk_source(disk: "etree._Element") -> tuple[str, str] | None:
    """(pool, volume) of a disk: in our shape (type volume) or the older one (type network, protocol rbd)."""
    source: Any = disk.find("source")
    if source is None:
        return None
    if disk.get("type") == "volume":
        pool, volume = source.get("pool", ""), source.get("volume", "")
    else:
        pool, _, volume = source.get("name", "").partition("/")
    return (str(pool), str(volume)) if pool and volume else None


def _check_networks(root: "etree._Element", plan: Json) -> Iterator[Problem]:
    for index, interface in enumerate(root.findall("devices/interface")):
        if find_network(interface, plan) is None:
            yield Problem(f"<devices/interface>[{index}]", "is not on one of the plan's networks")


def find_network(interface: "etree._Element", plan: Json) -> Json | None:
    """The planned network of an interface: named by VNI (type network) or by bridge (type bridge)."""
    source = interface.find("source")
    if source is None:
        return None
    key, attribute = ("vni", "network") if interface.get("type") == "network" else ("bridge", "bridge")
    return next((network for network in plan["networks"] if network[key] == source.get(attribute)), None)


def _check_consoles(root: "etree._Element", plan: Json) -> Iterator[Problem]:
    bind = plan["domain"]["vnc_bind"]
    for graphics in root.findall("devices/graphics"):
        if not plan["domain"]["vnc"]:
            yield Problem("<devices/graphics>", "the system template has VNC switched off")
        listens = [
            graphics.get("listen"),
            *(element.get("address") for element in graphics.findall("listen")),
        ]
        if any(address not in (None, bind) for address in listens):
            yield Problem("<devices/graphics>", f"must listen on the planned address {bind}")
    for serial in (*root.findall("devices/serial"), *root.findall("devices/console")):
        if serial.find("source") is not None or serial.find("log") is not None:
            yield Problem("<devices/serial>", "must not name a host file; the node adds the log itself")
    backends = [(element.text or "").strip() for element in root.findall("devices/rng/backend")]
    if any(backend not in ("/dev/urandom", "/dev/random") for backend in backends):
        yield Problem("<devices/rng/backend>", "must be /dev/urandom")
