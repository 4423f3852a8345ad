"""What guests ask for, and what they get here."""

from dataclasses import replace

import pytest
from ovf_samples import controller, cpu, drive, item, memory, nic, ovf, system

from pvccommon.errors import WrongInput
from pvccommon.images.hardware import (
    NIC_MODELS,
    choose_system,
    disk_id,
    map_networks,
    offer_hardware,
)
from pvccommon.images.ovf import parse_ovf
from pvccommon.images.ovf_model import GuestOs, OvfSystem
from pvccommon.images.virtual_hardware import CONTROLLERS
from pvccommon.images.virtual_hardware import NIC_MODELS as KNOWN_MODELS

WINDOWS = GuestOs(77, "Windows Server", "windows")


def parsed(*items: str) -> OvfSystem:
    (found,) = parse_ovf(ovf(items=items)).systems
    return found


def test_an_ordinary_system() -> None:
    offer = offer_hardware(parsed(cpu(4), memory(3000), controller(6, "lsilogic"), drive(), nic()))
    assert (offer.vcpus, offer.memory_mib, offer.firmware) == (4, 3000, "bios")
    assert (offer.serial, offer.vnc) == (True, False)
    assert [(disk.disk_id, disk.bus, disk.file) for disk in offer.disks] == [("sda", "scsi", "disk1.vmdk")]
    assert [(card.model, card.network) for card in offer.nics] == [("virtio", "VM Network")]
    assert offer.warnings == (
        "disk controller lsilogic -> virtio-scsi: the guest's initramfs needs its driver",
        "network card vmxnet3 -> virtio",
    )


@pytest.mark.parametrize(
    ("resource_type", "subtype", "linux", "windows"),
    [
        (5, "PIIX4", "sata", "sata"),
        (20, "AHCI", "sata", "sata"),
        (6, "lsilogic", "scsi", "sata"),
        (6, "lsilogicsas", "scsi", "sata"),
        (6, "VirtualSCSI", "scsi", "sata"),
        (6, "virtio-scsi", "scsi", "sata"),
        (20, "vmware.nvme.controller", "scsi", "sata"),
    ],
)
def test_disk_buses(resource_type: int, subtype: str, linux: str, windows: str) -> None:
    asked = parsed(controller(resource_type, subtype), drive())
    assert [disk.bus for disk in offer_hardware(asked).disks] == [linux]
    assert [disk.bus for disk in offer_hardware(replace(asked, os=WINDOWS)).disks] == [windows]
    assert [disk.bus for disk in offer_hardware(replace(asked, os=WINDOWS), virtio=True).disks] == [linux]


@pytest.mark.parametrize(
    ("subtype", "linux", "windows"),
    [
        ("E1000", "e1000", "e1000"),
        ("E1000e", "e1000e", "e1000e"),
        ("VmxNet3", "virtio", "e1000e"),
        ("PCNet32", "virtio", "rtl8139"),
        ("virtio", "virtio", "virtio"),
        ("something", "virtio", "e1000e"),
    ],
)
def test_network_cards(subtype: str, linux: str, windows: str) -> None:
    asked = parsed(nic(subtype))
    assert [card.model for card in offer_hardware(asked).nics] == [linux]
    assert [card.model for card in offer_hardware(replace(asked, os=WINDOWS)).nics] == [windows]


def test_every_known_device_has_an_answer() -> None:
    assert set(KNOWN_MODELS.values()) <= NIC_MODELS.keys()
    for name in CONTROLLERS:
        assert offer_hardware(parsed(controller(20, name), drive())).disks[0].bus in ("scsi", "sata")


def test_what_is_the_same_here_needs_no_warning() -> None:
    same = parsed(cpu(), memory(), controller(20, "AHCI"), drive(), nic("virtio"))
    assert offer_hardware(same).warnings == ()
    same = parsed(cpu(), memory(), controller(6, "virtio-scsi"), drive(), nic("E1000e"))
    assert offer_hardware(same).warnings == ()


def test_what_is_missing_is_told() -> None:
    offer = offer_hardware(parsed(item(24, InstanceID=9)))
    assert (offer.vcpus, offer.memory_mib, offer.serial, offer.vnc) == (1, 1024, False, True)
    assert offer.warnings == (
        "the OVF names no number of processors; 1 is taken",
        "the OVF names no memory; 1024 MiB are taken",
        "the system has no disks",
    )


def test_secure_boot_and_odd_memory_are_told() -> None:
    asked = replace(parsed(cpu(), memory(1000001, "byte")), secure_boot=True, firmware="uefi")
    offer = offer_hardware(asked)
    assert (offer.memory_mib, offer.firmware) == (1, "uefi")
    assert "secure boot is asked for; the VM starts without it" in offer.warnings
    assert "the memory is rounded up to whole MiB" in offer.warnings


@pytest.mark.parametrize(
    ("index", "name"), [(0, "sda"), (25, "sdz"), (26, "sdaa"), (51, "sdaz"), (52, "sdba")]
)
def test_disk_ids(index: int, name: str) -> None:
    assert disk_id(index) == name


def test_networks_are_mapped_by_name() -> None:
    offer = offer_hardware(
        parsed(nic(network="a"), nic(network="b", instance=21), nic(network="a", instance=22))
    )
    assert map_networks(offer.nics, {"a": "100", "b": "upstream"}) == ("100", "upstream", "100")
    with pytest.raises(WrongInput) as caught:
        map_networks(offer.nics, {"a": "100", "c": "5"})
    assert (
        caught.value.why
        == "networks: the OVF's network 'b' is not mapped; networks: the OVF has no network 'c'"
    )


def test_a_system_is_chosen_by_id_or_name() -> None:
    two = parse_ovf(ovf(systems=system(identity="one") + system(identity="two")))
    assert choose_system(two, "two").id == "two"
    with pytest.raises(WrongInput, match=r"the OVF describes 2"):
        choose_system(two)
    with pytest.raises(WrongInput, match="no system is called 'three'"):
        choose_system(two, "three")
    assert choose_system(parse_ovf(ovf())).id == "web"
