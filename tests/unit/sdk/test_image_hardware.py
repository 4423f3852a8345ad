"""From what an OVA asks for to the VM's devices."""

from typing import Any

import pytest
from lxml import etree
from worker_end import context, volume

from vmbuilder.context import Context
from vmbuilder.domain import domain_xml
from vmbuilder.errors import ValidationError
from vmbuilder.image_hardware import connect, devices, read_hardware, with_drivers

HARDWARE = {
    "vcpus": 2,
    "memory_mib": 2048,
    "firmware": "uefi",
    "disks": [{"disk_id": "sda", "bus": "scsi"}, {"disk_id": "sdb", "bus": "sata"}],
    "nics": [
        {"network": "VM Network", "model": "virtio", "mac": None},
        {"network": "Back=up", "model": "rtl8139", "mac": None},
    ],
}
CLONE = {"source_volume": "image_1_sda", "source_snapshot": "base"}
DISKS = [volume("sda", **CLONE), volume("sdb", **CLONE), volume("sdc")]
NETWORKS = [{"vni": vni, "mac": f"52:54:01:00:00:0{vni[-1]}", "bridge": ""} for vni in ("1001", "1002")]


def plan(**changes: Any) -> Context:
    image = {"name": "appliance", "kind": "ova", "node": None, "hardware": HARDWARE}
    return Context.from_json(context(**{"image": image, "volumes": DISKS, "networks": NETWORKS, **changes}))


def machine(found: Context, **drivers: str) -> tuple[list[str], list[str]]:
    """Buses and models of the domain document."""
    kinds = devices(found, with_drivers(read_hardware(found), **drivers))
    root = etree.fromstring(domain_xml(found, kinds))
    buses = [str(target.get("bus")) for target in root.findall("devices/disk/target")]
    return buses, [str(model.get("type")) for model in root.findall("devices/interface/model")]


def test_as_the_import_chose() -> None:
    assert machine(plan()) == (["scsi", "sata", "scsi"], ["virtio", "rtl8139"])
    assert read_hardware(plan()).firmware == "uefi"


def test_a_guest_without_virtio_gets_it_nowhere() -> None:
    assert machine(plan(), disks="emulated", nics="emulated") == (["sata"] * 3, ["e1000e", "rtl8139"])


def test_a_guest_with_virtio() -> None:
    assert machine(plan(), disks="virtio", nics="virtio") == (["scsi"] * 3, ["virtio"] * 2)


def test_disks_of_other_names_in_the_storage_template() -> None:
    disks = [volume("vda"), volume("vdb", **CLONE), volume("vdc", **CLONE)]
    assert machine(plan(volumes=disks))[0] == ["virtio", "scsi", "sata"]


@pytest.mark.parametrize("image", [None, {"name": "x", "kind": "disk", "node": None, "hardware": None}])
def test_an_image_that_asks_for_nothing(image: Any) -> None:
    assert machine(plan(image=image)) == (["scsi"] * 3, ["virtio"] * 2)


def test_networks_by_their_order_or_by_name() -> None:
    found = plan()
    hardware = read_hardware(found)
    assert [network.vni for network in connect(found, hardware, ())] == ["1001", "1002"]
    texts = ("Back=up=1001", "VM Network=1002")
    assert [network.vni for network in connect(found, hardware, texts)] == ["1002", "1001"]


def test_all_that_is_wrong_with_a_map_is_told_at_once() -> None:
    found = plan()
    with pytest.raises(ValidationError) as refused:
        connect(found, read_hardware(found), ("VM Network=9", "Other=1001"))
    for words in ("no network 'Other'", "no network 9", "'Back=up' is not mapped"):
        assert words in str(refused.value)


def test_one_network_of_the_profile_takes_one_card() -> None:
    found = plan()
    with pytest.raises(ValidationError, match="no network 1001"):
        connect(found, read_hardware(found), ("VM Network=1001", "Back=up=1001"))
