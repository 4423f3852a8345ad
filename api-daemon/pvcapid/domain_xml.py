"""What an answer says of a VM's domain, read from its stored libvirt document.

The document was checked when it was stored; still it is parsed with entities, network and DTDs off, and one
that cannot be read gives empty fields instead of an error.
"""

from collections.abc import Mapping
from typing import Any

from lxml import etree

PORT_AUTO = "-1"


def describe_domain(xml: str, vnis: Mapping[str, str], volumes: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a VM element that come from its XML.

    The document names bridges and files. What they stand for is told by `vnis` (MAC address to VNI) and
    `volumes` (device to `pool/volume`).
    """
    root = _parse(xml)
    cpus = _text(root, "vcpu") or "1"
    topology = root.find("cpu/topology")
    return {
        "networks": [_network(interface, vnis) for interface in root.findall("devices/interface")],
        "disks": [
            _disk(disk, volumes)
            for disk in root.findall("devices/disk")
            if disk.get("device") != "cdrom"  # of an installation, for a while
        ],
        "controllers": [
            {"type": item.get("type", ""), "model": item.get("model") or "N/A"}
            for item in root.findall("devices/controller")
        ],
        "vnc": _vnc(root),
        "vcpu_topology": _topology(topology) if topology is not None else f"1/{cpus}/1",
        "emulator": _text(root, "devices/emulator"),
        "type": root.get("type", ""),
        "arch": _attribute(root, "os/type", "arch"),
        "machine": _attribute(root, "os/type", "machine"),
        "features": [str(item.tag) for item in root.findall("features/*")],
        "console": _attribute(root, "devices/console", "type"),
    }


def _parse(xml: str) -> Any:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(xml.encode(), parser)
    except (etree.XMLSyntaxError, ValueError):
        return etree.Element("domain")


def _network(interface: Any, vnis: Mapping[str, str]) -> dict[str, Any]:
    kind = interface.get("type", "")
    attributes = _attributes(interface, "source")
    name = attributes.get("network") or attributes.get("bridge") or attributes.get("dev") or kind
    mac = _attribute(interface, "mac", "address")
    counters = ("rd_bytes", "rd_packets", "rd_errors", "wr_bytes", "wr_packets", "wr_errors")
    return {
        "type": kind,
        "vni": vnis.get(mac.lower()) or _vni_of_bridge(name),
        "mac": mac,
        "source": name,
        "model": _attribute(interface, "model", "type"),
        **dict.fromkeys(counters, 0),
    }


def _vni_of_bridge(bridge: str) -> str:
    """The reverse of `names.bridge_name`."""
    for prefix in ("vmbr", "br"):
        if bridge.startswith(prefix) and bridge != prefix:
            return bridge.removeprefix(prefix)
    return bridge


def _disk(disk: Any, volumes: Mapping[str, str]) -> dict[str, Any]:
    attributes = _attributes(disk, "source")
    device = _attribute(disk, "target", "dev")
    source = attributes.get("name") or attributes.get("file") or attributes.get("dev") or ""
    return {
        "type": attributes.get("protocol", "file"),
        "name": volumes.get(device) or source,
        "dev": device,
        "bus": _attribute(disk, "target", "bus"),
        **dict.fromkeys(("rd_req", "rd_bytes", "wr_req", "wr_bytes"), 0),
    }


def _vnc(root: Any) -> dict[str, str | None]:
    graphics = root.find("devices/graphics[@type='vnc']")
    if graphics is None:
        return {"listen": None, "port": None}
    port = graphics.get("port")
    listen = graphics.get("listen") or _attribute(graphics, "listen", "address") or "127.0.0.1"
    return {"listen": listen, "port": "auto" if port in (None, PORT_AUTO) else port}


def _topology(topology: Any) -> str:
    return "/".join(topology.get(key, "1") for key in ("sockets", "cores", "threads"))


def _text(root: Any, path: str) -> str:
    return (root.findtext(path) or "").strip()


def _attributes(root: Any, path: str) -> dict[str, str]:
    found = root.find(path)
    return dict(found.attrib) if found is not None else {}


def _attribute(root: Any, path: str, name: str) -> str:
    return _attributes(root, path).get(name, "")
