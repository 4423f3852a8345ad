"""The domain document: golden files, libvirt's own schema, and what depends on the plan.

`UPDATE_GOLDEN=1 pytest …` writes the golden files anew.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from worker_end import context, volume

from vmbuilder.context import Context
from vmbuilder.domain import Devices, disk_index, domain_xml

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")

DATA_DISKS = [volume("vda"), volume("sda"), volume("sdb", mountpoint="/", filesystem="xfs"), volume("sdj")]
CDROMS = [
    {"pool": "vms", "volume": "image_7_iso", "disk_id": "sdz", "size_bytes": 2**20, "temporary": False},
    {"pool": "vms", "volume": "web1_answers", "disk_id": "sdy", "size_bytes": 2**20, "temporary": True},
]
CASES: dict[str, dict[str, Any]] = {
    "bios-serial": context(),
    "uefi-vnc": context(
        domain={
            "type": "kvm",
            "cpu_mode": "host-passthrough",
            "firmware": "uefi",
            "memory_mib": 4096,
            "vcpus": 8,
            "serial": False,
            "vnc": True,
            "vnc_bind": "0.0.0.0",
        }
    ),
    "many-disks": context(volumes=DATA_DISKS, networks=[], vm_profile='<odd> & "name"'),
    "bare": context(volumes=[], networks=[]),
    "cdroms": context(cdroms=CDROMS),
}


@pytest.mark.parametrize("name", CASES)
def test_document_is_the_golden_one(name: str) -> None:
    text = domain_xml(Context.from_json(CASES[name]))
    path = GOLDEN / f"{name}.xml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.skipif(not SCHEMA.exists(), reason="libvirt's schemas are not installed (libvirt0)")
@pytest.mark.parametrize("name", CASES)
def test_document_follows_libvirts_schema(name: str) -> None:
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    document = etree.fromstring(domain_xml(Context.from_json(CASES[name])))
    assert schema.validate(document), schema.error_log


@pytest.mark.parametrize(
    ("disk_id", "index"), [("sda", 0), ("vdb", 1), ("sdz", 25), ("sdaa", 26), ("sdba", 52)]
)
def test_disk_index(disk_id: str, index: int) -> None:
    assert disk_index(disk_id) == index


@pytest.mark.parametrize("disk_id", ["", "sd", "sda1", "SDA", "nvme0n1", "../sda"])
def test_disk_index_of_something_else(disk_id: str) -> None:
    with pytest.raises(ValueError, match="expected a name like sda"):
        disk_index(disk_id)


@pytest.mark.parametrize(
    ("kinds", "disks", "places"),
    [
        (Devices(), ["sda"], [("sata", "5"), ("sata", "4")]),
        (Devices(cdrom_bus="scsi"), ["sda"], [("scsi", "25"), ("scsi", "24")]),
        (Devices(disk_bus="sata"), ["sda", "sdb", "sdf"], [("sata", "4"), ("sata", "3")]),
        (Devices(disk_bus="sata"), ["sda", "sdb", "sdc", "sdd", "sde"], [("sata", "5"), ("sata", None)]),
    ],
)
def test_cdroms_have_places_that_no_disk_takes(
    kinds: Devices, disks: list[str], places: list[tuple[str, str | None]]
) -> None:
    """One without a place gets it from libvirt, by its name."""
    of = Context.from_json(context(cdroms=CDROMS, volumes=[volume(name) for name in disks]))
    found = []
    for drive in etree.fromstring(domain_xml(of, kinds)).findall("devices/disk[@device='cdrom']"):
        address = drive.find("address")
        found.append((drive.find("target").get("bus"), None if address is None else address.get("unit")))
    assert found == places
