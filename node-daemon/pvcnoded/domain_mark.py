"""How a domain says whose it is: an element of ours in its <metadata>, which scripts cannot set.

<metadata><pvc:build xmlns:pvc="urn:x-pvc:domain:1" cluster="pvc">0123456789abcdef</pvc:build></metadata>
"""

from dataclasses import dataclass

from lxml import etree

NAMESPACE = "urn:x-pvc:domain:1"
BUILD = f"{{{NAMESPACE}}}build"


@dataclass(frozen=True)
class DomainMark:
    """The cluster a domain belongs to, and the build that has made it."""

    cluster: str
    build: str


def mark_domain(definition: str, mark: DomainMark) -> str:
    """The definition with the mark, in place of any metadata it has."""
    root = _parse(definition)
    for element in root.findall("metadata"):
        root.remove(element)
    metadata = etree.SubElement(root, "metadata")
    build = etree.SubElement(metadata, BUILD, {"cluster": mark.cluster}, {"pvc": NAMESPACE})
    build.text = mark.build
    etree.indent(root)
    return etree.tostring(root, encoding="unicode")


def read_mark(definition: str) -> DomainMark | None:
    """The mark of a domain; None when it has none."""
    build = _parse(definition).find(f"metadata/{BUILD}")
    return None if build is None else DomainMark(build.get("cluster", ""), (build.text or "").strip())


def disk_sources(definition: str) -> frozenset[str]:
    """Everything the disks of a domain, with what they stand on, name: files, devices, "pool/image"."""
    sources = _parse(definition).iterfind("devices/disk//source")
    return frozenset(str(value) for source in sources for value in source.attrib.values())


def _parse(definition: str) -> "etree._Element":
    return etree.fromstring(definition, etree.XMLParser(resolve_entities=False))
