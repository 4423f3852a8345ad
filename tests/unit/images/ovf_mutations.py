"""Documents that nobody would write: good ones with changes to their tree, and damage to their bytes."""

import random
from collections.abc import Callable

from lxml import etree
from ovf_samples import DISK, ITEMS, controller, cpu, drive, item, memory, nic, ovf, system

TEMPLATES = (
    ovf(),
    ovf(version=2, items=[cpu(), memory(), item(31, tag="StorageItem", HostResource="ovf:/disk/vmdisk1")]),
    ovf(
        systems=f'<VirtualSystemCollection ovf:id="c">{system(identity="a")}{system(identity="b")}'
        "</VirtualSystemCollection>",
        disks=DISK + '<Disk ovf:diskId="d2" ovf:capacity="1"/>',
    ),
    ovf(
        items=[
            *ITEMS,
            controller(5, "PIIX4", 4),
            drive("d2", parent=4, instance=11),
            nic("E1000", instance=21),
        ],
        disks=DISK + '<Disk ovf:diskId="d2" ovf:capacity="1"/>',
        more='<DeploymentOptionSection><Configuration ovf:id="x"/></DeploymentOptionSection>',
    ),
)
TEXTS = (
    "", " ", "0", "-1", "1e9", "18446744073709551616", "9" * 400, "٣", "NaN", "true", "byte * 2^20",
    "byte * 2^-3", "MegaBytes", "hertz", "byte^9999999", "ovf:/disk/vmdisk1", "ovf:/file/file1", "ovf:/disk/",
    "/etc/passwd", "../x", "%2e%2e%2f", "http://192.0.2.1/", "\u202e", "\u2028", "${x}", "3", "4", "5", "6",
    "10", "15", "17", "20", "24", "31", "65535", "vmdisk1", "file1", "e1000 vmxnet3", "00:11:22:33:44:55",
    "x" * 3000,
)  # fmt: skip
NAMES = (
    "Item", "StorageItem", "VirtualSystem", "VirtualSystemCollection", "VirtualHardwareSection", "Disk",
    "File", "Network", "ResourceType", "HostResource", "Envelope", "Config", "Machine", "Name",
)  # fmt: skip
ATTRIBUTES = (
    "id", "href", "diskId", "fileRef", "capacity", "format", "capacityAllocationUnits", "bound", "key",
    "size",
)  # fmt: skip


def parts(root: "etree._Element") -> "list[etree._Element]":
    return [element for element in root.iter() if element.getparent() is not None] or [root]


def remove(root: "etree._Element", dice: random.Random) -> None:
    element = dice.choice(parts(root))
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


def repeat(root: "etree._Element", dice: random.Random) -> None:
    element = dice.choice(parts(root))
    parent = element.getparent()
    if parent is not None:
        copy = etree.fromstring(etree.tostring(element))
        for _ in range(dice.choice((1, 1, 2, 40))):
            parent.append(etree.fromstring(etree.tostring(copy)))


def move(root: "etree._Element", dice: random.Random) -> None:
    element, target = dice.choice(parts(root)), dice.choice(parts(root))
    if element not in target.iterancestors() and element is not target:
        target.append(element)


def retext(root: "etree._Element", dice: random.Random) -> None:
    dice.choice(parts(root)).text = dice.choice(TEXTS)


def reattribute(root: "etree._Element", dice: random.Random) -> None:
    element = dice.choice(parts(root))
    keys = [*element.attrib, *ATTRIBUTES]
    element.set(dice.choice(keys), dice.choice(TEXTS))


def rename(root: "etree._Element", dice: random.Random) -> None:
    element = dice.choice(parts(root))
    space = str(element.tag).rpartition("}")[0]
    element.tag = f"{space}}}{dice.choice(NAMES)}" if space else dice.choice(NAMES)


def nest(root: "etree._Element", dice: random.Random) -> None:
    element = dice.choice(parts(root))
    for _ in range(dice.choice((1, 3, 40))):
        element = etree.SubElement(element, str(dice.choice(parts(root)).tag))


def flip(document: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(document))
    return document[:place] + bytes([dice.randrange(256)]) + document[place + 1 :]


def cut(document: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(document))
    return document[:start] + document[start + dice.randrange(200) :]


CHANGES: tuple[Callable[["etree._Element", random.Random], None], ...] = (
    remove, repeat, move, retext, retext, retext, reattribute, reattribute, reattribute, rename, nest,
)  # fmt: skip


def mutated(template: int, changes: int, damage: int, dice: random.Random) -> bytes:
    """A template with some changes to its tree, then some damage to its bytes."""
    root = etree.fromstring(TEMPLATES[template])
    for _ in range(changes):
        dice.choice(CHANGES)(root, dice)
    document: bytes = etree.tostring(root, xml_declaration=True, encoding="UTF-8")
    for _ in range(damage):
        document = dice.choice((flip, cut))(document, dice)
    return document
