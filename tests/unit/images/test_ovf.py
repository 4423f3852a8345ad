"""OVF documents: what is read, what is warned of, what is refused with which reason."""

import time

import pytest
from ovf_samples import (
    DISK,
    FILE,
    ITEMS,
    NETWORK,
    STREAM_OPTIMIZED,
    controller,
    cpu,
    drive,
    item,
    memory,
    nic,
    ovf,
    system,
)

from pvccommon.errors import Problem, WrongInput
from pvccommon.images.guest_os import guest_os
from pvccommon.images.limits import Limits
from pvccommon.images.ovf import parse_ovf
from pvccommon.images.ovf_model import OvfSystem

GIB = 1024**3


def only(document: bytes) -> OvfSystem:
    (found,) = parse_ovf(document).systems
    return found


def problems(document: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(WrongInput) as caught:
        parse_ovf(document, limits or Limits())
    return caught.value.message


def test_a_whole_document() -> None:
    document = parse_ovf(ovf())
    assert (document.version, document.networks, document.warnings) == ("1", ("VM Network",), ())
    (file,) = document.files
    assert (file.id, file.href, file.size_bytes) == ("file1", "disk1.vmdk", 1000)
    (found,) = document.systems
    assert (found.id, found.name, found.vcpus, found.memory_bytes) == ("web", "web", 2, 2 * GIB)
    assert (found.os.cim_type, found.os.family, found.os.description) == (96, "linux", "Debian 64-Bit")
    assert (found.firmware, found.secure_boot, found.boot_order) == ("bios", False, ())
    (only_drive,) = found.drives
    assert only_drive.controller is not None
    assert (only_drive.controller.kind, only_drive.controller.model, only_drive.unit) == (
        "scsi",
        "lsilogic",
        0,
    )
    assert (only_drive.disk.capacity_bytes, only_drive.disk.format) == (10 * GIB, "vmdk")
    assert only_drive.disk.file is file
    (card,) = found.nics
    assert (card.network, card.model, card.mac) == ("VM Network", "vmxnet3", None)


def test_version_2_with_its_own_items() -> None:
    items = [
        cpu(4),
        memory(4096),
        item(20, tag="StorageItem", InstanceID=3, ResourceSubType="AHCI"),
        item(31, tag="StorageItem", Parent=3, AddressOnParent=1, HostResource="ovf:/disk/vmdisk1"),
        item(10, tag="EthernetPortItem", InstanceID=5, ResourceSubType="E1000", Connection="VM Network",
             Address="00:0C:29:AB:cd:01"),
    ]  # fmt: skip
    document = parse_ovf(ovf(version=2, items=items))
    (found,) = document.systems
    assert document.version == "2"
    assert [(d.controller and d.controller.kind, d.unit) for d in found.drives] == [("sata", 1)]
    assert [(n.model, n.mac) for n in found.nics] == [("e1000", "00:0c:29:ab:cd:01")]


@pytest.mark.parametrize(
    ("quantity", "units", "size"),
    [
        (512, "byte * 2^20", 512 * 2**20),
        (512, "MegaBytes", 512 * 2**20),
        (2, "byte*2^30", 2 * GIB),
        (1000, "megabyte", 10**9),
        (512, None, 512 * 2**20),
    ],
)
def test_memory_units(quantity: int, units: str | None, size: int) -> None:
    assert only(ovf(items=[cpu(), memory(quantity, units)])).memory_bytes == size


def test_units_of_the_virtual_quantity_go_before_those_of_the_allocation() -> None:
    fields = {"InstanceID": 2, "VirtualQuantity": 3, "AllocationUnits": "byte * 2^20"}
    assert only(ovf(items=[item(4, **fields, VirtualQuantityUnits="byte * 2^30")])).memory_bytes == 3 * GIB
    assert only(ovf(items=[item(4, **fields, VirtualQuantityUnits="count")])).memory_bytes == 3 * 2**20


def test_collections_are_flattened_in_order() -> None:
    one, two, three = (system(identity=name) for name in ("one", "two", "three"))
    inner = f'<VirtualSystemCollection ovf:id="inner"><Info/>{two}</VirtualSystemCollection>'
    outer = f'<VirtualSystemCollection ovf:id="outer"><Info/>{one}{inner}{three}</VirtualSystemCollection>'
    assert [found.id for found in parse_ovf(ovf(systems=outer)).systems] == ["one", "two", "three"]


def test_disks_are_ordered_by_address_not_by_document() -> None:
    files = "".join(f'<File ovf:id="f{n}" ovf:href="d{n}.vmdk"/>' for n in range(4))
    disks = "".join(
        f'<Disk ovf:diskId="d{n}" ovf:fileRef="f{n}" ovf:capacity="1" ovf:format="{STREAM_OPTIMIZED}"/>'
        for n in range(4)
    )
    items = [
        controller(5, "PIIX4", instance=5, address=1),
        controller(5, "PIIX4", instance=4, address=0),
        drive("d0", parent=5, unit=0, instance=10),
        drive("d1", parent=4, unit=1, instance=11),
        drive("d2", parent=4, unit=0, instance=12),
        drive("d3", parent=5, unit=1, instance=13),
    ]
    found = only(ovf(files=files, disks=disks, items=items))
    assert [entry.disk.id for entry in found.drives] == ["d2", "d1", "d0", "d3"]


@pytest.mark.parametrize(
    ("resource_type", "subtype", "kind", "model"),
    [
        (5, "PIIX4", "ide", "piix4"),
        (5, "", "ide", ""),
        (6, "lsilogic", "scsi", "lsilogic"),
        (6, "lsilogicsas", "scsi", "lsilogicsas"),
        (6, "VirtualSCSI", "scsi", "pvscsi"),
        (6, "virtio-scsi", "scsi", "virtio"),
        (6, "made-up", "scsi", ""),
        (20, "AHCI", "sata", "ahci"),
        (20, "vmware.sata.ahci", "sata", "ahci"),
        (20, "vmware.nvme.controller", "nvme", "nvme"),
        (20, "LsiLogicSas", "scsi", "lsilogicsas"),
    ],
)
def test_controllers(resource_type: int, subtype: str, kind: str, model: str) -> None:
    (found,) = only(ovf(items=[controller(resource_type, subtype), drive()])).drives
    assert found.controller is not None
    assert (found.controller.kind, found.controller.model) == (kind, model)


@pytest.mark.parametrize(
    ("subtype", "model"),
    [
        ("E1000", "e1000"),
        ("E1000e", "e1000e"),
        ("VmxNet3", "vmxnet3"),
        ("PCNet32", "pcnet32"),
        ("virtio", "virtio"),
        ("made-up E1000", "e1000"),
        ("made-up", ""),
    ],
)
def test_network_cards(subtype: str, model: str) -> None:
    assert [card.model for card in only(ovf(items=[nic(subtype)])).nics] == [model]


@pytest.mark.parametrize(
    ("section", "more", "firmware", "secure_boot"),
    [
        ('<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>', "", "uefi", False),
        ('<vmw:ExtraConfig vmw:key="firmware" vmw:value="EFI"/>', "", "uefi", False),
        ('<vmw:Config vmw:key="firmware" vmw:value="bios"/>', "", "bios", False),
        (
            '<vmw:Config vmw:key="firmware" vmw:value="efi"/>'
            '<vmw:Config vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>',
            "",
            "uefi",
            True,
        ),
        (
            "",
            '<vbox:Machine><vbox:Hardware><vbox:Firmware type="EFI"/></vbox:Hardware></vbox:Machine>',
            "uefi",
            False,
        ),
    ],
)
def test_firmware(section: str, more: str, firmware: str, secure_boot: bool) -> None:
    found = only(ovf(systems=system(section=section, more=more)))
    assert (found.firmware, found.secure_boot) == (firmware, secure_boot)


@pytest.mark.parametrize(
    ("section", "more"),
    [
        ("", '<vmw:BootOrderSection vmw:type="disk"/><vmw:BootOrderSection vmw:type="cdrom"/>'),
        ('<vmw:ExtraConfig vmw:key="bios.bootOrder" vmw:value="disk,cdrom"/>', ""),
    ],
)
def test_boot_order(section: str, more: str) -> None:
    assert only(ovf(systems=system(section=section, more=more))).boot_order == ("disk", "cdrom")


def test_more_of_the_hardware() -> None:
    gigabyte = item(4, InstanceID=2, VirtualQuantity=1, AllocationUnits="byte*2^30")
    another = item(4, InstanceID=3, VirtualQuantity=1, AllocationUnits="GB")
    found = only(ovf(items=[cpu(8, CoresPerSocket=4), item(24, InstanceID=7), gigabyte, another]))
    assert (found.vcpus, found.cores_per_socket, found.memory_bytes) == (8, 4, 2 * GIB)
    assert found.graphics


def test_items_of_other_configurations_and_bounds_are_left_out() -> None:
    options = (
        '<DeploymentOptionSection><Configuration ovf:id="small"/>'
        '<Configuration ovf:id="large" ovf:default="true"/></DeploymentOptionSection>'
    )
    items = [
        item(3, VirtualQuantity=1, InstanceID=1, attributes='ovf:configuration="small"'),
        item(3, VirtualQuantity=8, InstanceID=1, attributes='ovf:configuration="large huge"'),
        item(3, VirtualQuantity=64, InstanceID=1, attributes='ovf:bound="max"'),
    ]
    assert only(ovf(items=items, more=options)).vcpus == 8


def test_a_blank_disk_and_an_escaped_name() -> None:
    files = '<File ovf:id="file1" ovf:href="my%20disk.vmdk"/>'
    disks = DISK + '<Disk ovf:diskId="blank" ovf:capacity="5368709120"/>'
    document = parse_ovf(ovf(files=files, disks=disks))
    assert [disk.file and disk.file.href for disk in document.disks] == ["my disk.vmdk", None]
    assert document.disks[1].capacity_bytes == 5 * GIB
    assert document.warnings == ("DiskSection: disk 'blank' is attached to no system",)


@pytest.mark.parametrize(
    ("document", "warning"),
    [
        (ovf(items=[*ITEMS, item(15, InstanceID=30)]), "the CD-ROM drive is left out"),
        (ovf(items=[*ITEMS, item(14, InstanceID=30)]), "the floppy drive is left out"),
        (ovf(items=[*ITEMS, item(777, InstanceID=30)]), "device of the unknown type 777 is left out"),
        (ovf(items=[*ITEMS, item(20, InstanceID=30, ResourceSubType="x")]), "storage device 'x' is left out"),
        (ovf(items=[*ITEMS, item(17, InstanceID=30)]), "the drive has no disk"),
        (ovf(items=[memory(1, None)]), "memory without AllocationUnits is taken as MiB"),
        (ovf(items=[nic(network="Elsewhere")]), "network 'Elsewhere' is not in the NetworkSection"),
        (ovf(items=[nic(Address="nonsense")]), "'nonsense' is not a MAC address"),
        (ovf(items=[drive(parent=99)]), "'99' is not a disk controller known here"),
        (ovf(more="<vmw:Surprise/>"), "<Surprise> is not read"),
        (ovf(systems=system(more="<ProductSection/>")), "<ProductSection> is not read"),
        (ovf(systems=system(section="<Widget/>")), "<Widget> is not read"),
        (
            ovf(systems=system(section='<vmw:Config vmw:key="firmware" vmw:value="openfirmware"/>')),
            "the firmware 'openfirmware' is not known",
        ),
    ],
)
def test_what_is_unknown_is_a_warning(document: bytes, warning: str) -> None:
    assert any(warning in text for text in parse_ovf(document).warnings)


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>"""
XXE = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY secret SYSTEM "file:///etc/passwd">]>"""

HOSTILE = {
    "entities": (ovf(prolog=BOMB), "has a DOCTYPE"),
    "external entity": (ovf(prolog=XXE), "has a DOCTYPE"),
    "external DTD": (ovf(prolog='<!DOCTYPE x SYSTEM "http://192.0.2.1/x.dtd">'), "has a DOCTYPE"),
    "no XML": (b"\x7fELF" + bytes(100), "not well-formed XML"),
    "nothing": (b"", "not well-formed XML"),
    "cut off": (ovf()[:-30], "not well-formed XML"),
    "unknown encoding": (ovf(prolog='<?xml version="1.0" encoding="EBCDIC-X"?>'), "not well-formed XML"),
    "a NUL": (ovf().replace(b"A virtual machine", b"A\0B"), "not well-formed XML"),
    "deep": (ovf(more="<a>" * 40 + "</a>" * 40), "nested deeper than 32"),
    "many elements": (ovf(more="<a/>" * 20_001), "more than 20000 elements"),
    "many attributes": (
        ovf(more="<a " + " ".join(f"a{n}=''" for n in range(200_000)) + "/>"),
        "more than 64 attributes",
    ),
    "many namespaces": (
        ovf(more="<a " + " ".join(f"xmlns:a{n}='u'" for n in range(50_000)) + "/>"),
        "more than 64 attributes",
    ),
    "long tag": (ovf(more=f"<{'a' * 300}/>"), "a name longer than 255"),
    "long text": (ovf(more=f"<a>{'x' * 600_000}</a>"), "a text longer than 524288"),
    "long attribute": (ovf(more=f"<a b='{'x' * 600_000}'/>"), "a text longer than 524288"),
    "large": (ovf(more=f"<!--{'x' * 5_000_000}-->"), "larger than 4194304 bytes"),
    "other root": (b"<html/>", "root element is <html>"),
    "OVF 0.9": (b'<Envelope xmlns="http://www.vmware.com/schema/ovf/1/envelope"/>', "not that of OVF 1 or 2"),
    "no system": (ovf(systems=""), "has no VirtualSystem"),
    "many systems": (ovf(systems=system(()) * 65), "more than 64 virtual systems"),
    "equal systems": (ovf(systems=system() * 2), "'web' is used twice"),
    "no hardware": (ovf(systems='<VirtualSystem ovf:id="x"/>'), "VirtualHardwareSection: is missing"),
    "absolute path": (ovf(files=FILE.replace("disk1", "/etc/passwd")), "is an absolute path"),
    "Windows path": (ovf(files=FILE.replace("disk1", "C:\\boot")), "is an absolute path"),
    "parent path": (ovf(files=FILE.replace("disk1", "../../disk1")), "leads out of its folder by '..'"),
    "escaped parent path": (ovf(files=FILE.replace("disk1", "..%2f..%2fx")), "leads out of its folder"),
    "folder": (ovf(files=FILE.replace("disk1", "disks/disk1")), "is in a folder"),
    "URL": (ovf(files=FILE.replace("disk1", "http://192.0.2.1/d")), "is a URL"),
    "control character": (ovf(files=FILE.replace("disk1", "a%0Ab")), "has a control or invisible"),
    "escaped NUL": (ovf(files=FILE.replace("disk1", "a%00b")), "has a control or invisible character"),
    "reversed text": (ovf(files=FILE.replace("disk1", "a\u202eb")), "has a control or invisible character"),
    "long name": (ovf(files=FILE.replace("disk1", "x" * 300)), "is longer than 255 bytes"),
    "no name": (ovf(files='<File ovf:id="file1"/>'), "'' is empty"),
    "chunks": (ovf(files=FILE.replace("/>", ' ovf:chunkSize="10"/>')), "files in chunks are not read"),
    "gzip": (ovf(files=FILE.replace("/>", ' ovf:compression="gzip"/>')), "compressed files are not read"),
    "equal files": (ovf(files=FILE * 2), "'file1' is used twice"),
    "equal hrefs": (ovf(files=FILE + FILE.replace("file1", "file2")), "'disk1.vmdk' is listed twice"),
    "unlisted file": (ovf(files=""), "'file1' is not in the References"),
    "shared file": (ovf(disks=DISK + DISK.replace("vmdisk1", "b")), "is already the file of disk 'vmdisk1'"),
    "equal disks": (ovf(disks=DISK * 2), "'vmdisk1' is used twice"),
    "parent disk": (ovf(disks=DISK.replace("/>", ' ovf:parentRef="x"/>')), "stand on another disk"),
    "unknown format": (ovf(disks=DISK.replace(STREAM_OPTIMIZED, "urn:x")), "'urn:x' is not a format known"),
    "no format": (ovf(disks=DISK.replace("ovf:format", "ovf:f")), "DiskSection.Disk[0].format: is missing"),
    "no capacity": (ovf(disks=DISK.replace("ovf:capacity=", "ovf:c=")), "Disk[0].capacity: is missing"),
    "capacity 0": (ovf(disks=DISK.replace('"10"', '"0"')), "must be from 1 to"),
    "capacity -1": (ovf(disks=DISK.replace('"10"', '"-1"')), "'-1' is not a whole number"),
    "capacity by property": (ovf(disks=DISK.replace('"10"', '"${size}"')), "'${size}' is not a whole number"),
    "huge capacity": (ovf(disks=DISK.replace('"10"', '"99999999"')), "must be from 1 to"),
    "endless capacity": (ovf(disks=DISK.replace('"10"', f'"{"9" * 5000}"')), "is not a whole number"),
    "capacity unit": (ovf(disks=DISK.replace("byte * 2^30", "parsec")), "'parsec' is not a unit of size"),
    "no vCPUs": (ovf(items=[cpu(0)]), "gives 0; must be from 1 to 1024"),
    "many vCPUs": (ovf(items=[cpu(4000)]), "gives 4000; must be from 1 to 1024"),
    "vCPUs in words": (ovf(items=[cpu("two")]), "'two' is not a whole number"),
    "Arabic digits": (ovf(items=[cpu("٣")]), "is not a whole number"),
    "no quantity": (ovf(items=[cpu("")]), "VirtualQuantity: is missing"),
    "memory unit": (ovf(items=[memory(1, "furlong")]), "'furlong' is not a unit of size"),
    "huge memory": (ovf(items=[memory(1, "byte * 2^60")]), "must be from 1 to"),
    "no type": (ovf(items=[item("")]), "ResourceType: is missing"),
    "type in words": (ovf(items=[item("disk")]), "'disk' is not a whole number"),
    "two types": (
        ovf(items=[cpu().replace("</Item>", "<rasd:ResourceType>4</rasd:ResourceType></Item>")]),
        "ResourceType: is given more than once",
    ),
    "equal instances": (ovf(items=[nic(), nic()]), "'20' is used twice"),
    "missing disk": (ovf(items=[drive("other")]), "disk 'other' is not in the DiskSection"),
    "drive on a file": (
        ovf(items=[item(17, HostResource="ovf:/file/file1")]),
        "names a file instead of a disk",
    ),
    "odd reference": (ovf(items=[item(17, HostResource="/dev/sda")]), "does not name a disk"),
    "disk twice": (ovf(items=[drive(), drive(unit=1, instance=11)]), "disk 'vmdisk1' is attached twice"),
    "unit in words": (ovf(items=[drive(unit="x")]), "'x' is not a whole number"),
    "many disks": (ovf(items=[drive(instance=n) for n in range(65)]), "more than 64 disks"),
    "many cards": (ovf(items=[nic(instance=n) for n in range(33)]), "more than 32 network cards"),
    "network name": (ovf(items=[nic(network="a\u2028b")]), "has a control or invisible character"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_with_their_reason(name: str) -> None:
    document, reason = HOSTILE[name]
    assert reason in problems(document)


def test_two_disks_at_one_address() -> None:
    files = FILE + '<File ovf:id="file2" ovf:href="disk2.vmdk"/>'
    disks = DISK + DISK.replace("vmdisk1", "vmdisk2").replace("file1", "file2")
    items = [controller(6, "lsilogic"), drive(), drive("vmdisk2", instance=11)]
    assert "two disks have address 0 on controller '3'" in problems(
        ovf(files=files, disks=disks, items=items)
    )


def test_all_problems_come_at_once_each_with_its_path() -> None:
    document = ovf(files="", items=[cpu("x"), memory(1, "y"), drive("z")])
    with pytest.raises(WrongInput) as caught:
        parse_ovf(document)
    assert set(caught.value.problems) == {
        Problem("DiskSection.Disk[0].fileRef", "'file1' is not in the References"),
        Problem("VirtualSystem[0].Item[0].VirtualQuantity", "'x' is not a whole number"),
        Problem(
            "VirtualSystem[0].Item[1].VirtualQuantity", "'y' is not a unit of size, such as 'byte * 2^20'"
        ),
        Problem("VirtualSystem[0].Item[2].HostResource", "disk 'z' is not in the DiskSection"),
    }


def test_many_problems_are_cut() -> None:
    document = ovf(items=[cpu("x")] * 500)
    with pytest.raises(WrongInput) as caught:
        parse_ovf(document)
    assert len(caught.value.problems) == 100


def test_a_document_as_large_as_allowed_is_read_soon() -> None:
    """Nothing in it may cost more than its length: not its disks, nor controllers, cards or networks."""
    numbers = range(2400)
    files = "".join(f'<File ovf:id="f{n}" ovf:href="f{n}"/>' for n in numbers)
    disks = "".join(DISK.replace("vmdisk1", f"d{n}").replace("file1", f"f{n}") for n in numbers)
    networks = "".join(f'<Network ovf:name="n{n}"/>' for n in numbers)
    drives = [item(17, HostResource=f"ovf:/disk/d{n}", Parent=n) for n in range(1200)]
    controllers = [item(6, InstanceID=n) for n in range(1200)]
    document = ovf(files=files, disks=disks, networks=networks, items=drives + controllers)
    started = time.monotonic()
    assert "more than 64 disks" in problems(document)
    assert time.monotonic() - started < 5.0  # a fifth of a second on an idle machine


def test_a_network_listed_twice_is_one() -> None:
    assert parse_ovf(ovf(networks=NETWORK * 2)).networks == ("VM Network",)


@pytest.mark.parametrize(
    ("cim_type", "texts", "family"),
    [
        (96, (), "linux"),
        (101, (), "linux"),
        (107, (), "linux"),
        (78, (), "bsd"),
        (77, (), "windows"),
        (103, (), "windows"),
        (115, (), "windows"),
        (1, ("debian11_64Guest",), "linux"),
        (0, ("Ubuntu Linux (64-bit)",), "linux"),
        (0, ("Windows2019_64",), "windows"),
        (0, ("FreeBSD_64",), "bsd"),
        (102, ("Other 64-Bit",), "other"),
        (0, (), "other"),
    ],
)
def test_families_of_guests(cim_type: int, texts: tuple[str, ...], family: str) -> None:
    assert guest_os(cim_type, *texts).family == family
