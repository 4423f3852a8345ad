"""The OVA builder: the machine is like the one that the OVA describes, and the second VM of it is quick."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import NOOP, Cluster
from guest_disk import FILES, MIB, Disk, make_disk
from lxml import etree
from sqlalchemy import select

from pvccommon.models import Image, ImageKind

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

BUILDER = NOOP.with_name("ova.py")
IMAGE = "appliance"
HARDWARE = {
    "vcpus": 1,
    "memory_mib": 512,
    "firmware": "uefi",
    "serial": True,
    "vnc": False,
    "disks": [{"disk_id": "sda", "bus": "sata"}, {"disk_id": "sdb", "bus": "sata"}],
    "nics": [{"network": "VM Network", "model": "e1000", "mac": None}],
}
KERNEL = "/usr/lib/modules/6.1.0-tiny"
BUILT_IN = "".join(f"kernel/drivers/{name}.ko\n" for name in ("virtio_pci", "virtio_scsi", "virtio_net"))
START_LIMIT_S = 30  # meant are 5, which `make bench` measures; other tests may run on the machine


@pytest.fixture(scope="module", params=["directory_cluster", "ceph_cluster"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Everything here is true for both kinds of pools."""
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def profile(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As an import makes it: of type ova, without network and storage template."""
    place = tmp_path_factory.mktemp("ova")
    data = place / "data.raw"
    data.touch()
    with data.open("r+b") as stream:
        stream.truncate(32 * MIB)
    disk = make_disk(place, {**FILES, f"{KERNEL}/modules.builtin": BUILT_IN})
    cluster.make_image(IMAGE, ImageKind.OVA, {"sda": disk, "sdb": data})
    with cluster.database.session() as session:
        session.execute(select(Image).where(Image.name == IMAGE)).scalar_one().document = {
            "hardware": HARDWARE
        }
    cluster.ensure("/provisioner/template/system", "small", vcpus=1, vram=512, serial=True, vnc=False)
    cluster.ensure("/provisioner/template/network", "one-card")
    cluster.change("POST", "/provisioner/template/network/one-card/net/upstream")
    cluster.ensure("/provisioner/script", "ova", data=BUILDER.read_text())
    parts = {"profile_type": "ova", "system_template": "small", "script": "ova", "image": IMAGE}
    cluster.ensure("/provisioner/profile", IMAGE, network_template="one-card", **parts)
    yield IMAGE
    cluster.remove_image(IMAGE)


@pytest.fixture
def vms(cluster: Cluster, profile: str) -> Iterator[list[str]]:
    """Names of VMs, removed afterwards."""
    made: list[str] = []
    yield made
    for vm in made:
        cluster.change("DELETE", f"/vm/{vm}", delete_disks=True)


def build(cluster: Cluster, vms: list[str], vm: str, *arguments: str, **values: Any) -> "etree._Element":
    """Build a VM; returns its definition."""
    task = cluster.create(vm, IMAGE, arg=list(arguments), **values)
    ended = cluster.wait(task)
    assert ended["build_state"] == "succeeded", f"{ended['error']}\n{cluster.log(task)}"
    vms.append(vm)
    return etree.fromstring(cluster.domains()[vm])


def buses(domain: "etree._Element") -> list[str]:
    return [str(target.get("bus")) for target in domain.findall("devices/disk[@device='disk']/target")]


def models(domain: "etree._Element") -> list[str]:
    return [str(model.get("type")) for model in domain.findall("devices/interface/model")]


def test_the_machine_is_like_the_one_described_and_the_second_starts_at_once(
    cluster: Cluster, vms: list[str]
) -> None:
    for vm in ("ova1", "ova2"):
        started = time.monotonic()
        domain = build(cluster, vms, vm, "networks=VM Network=upstream")
        seconds = time.monotonic() - started
        assert cluster.domain_state(vm) == "running"
        assert buses(domain) == ["sata", "sata"] and models(domain) == ["e1000"]
        loader = domain.find("os/loader")
        assert loader is not None and "OVMF" in (loader.text or "")
        for disk in ("sda", "sdb"):
            clone = cluster.pool.stat_volume(f"{vm}_{disk}")
            assert clone.parent and clone.used_bytes < MIB
    print(f"accepted to started: {seconds:.2f} s")
    assert seconds < START_LIMIT_S


def test_drivers_found_on_the_disk_change_the_machine(cluster: Cluster, vms: list[str]) -> None:
    domain = build(cluster, vms, "ova3", "personalise=true", start_vm=False)
    assert buses(domain) == ["scsi", "scsi"] and models(domain) == ["virtio"]
    assert Disk(cluster.pool, "ova3_sda").read("/etc/hostname") == "ova3\n"


def test_wrong_map_of_networks_is_refused_before_anything_is_made(cluster: Cluster, profile: str) -> None:
    ended = cluster.build("ova4", IMAGE, arg=["networks=Other=upstream"])
    assert ended["build_state"] == "failed" and ended["error"]["stage"] == "setup"
    assert "'VM Network' is not mapped" in ended["error"]["why"]


def test_plan_shows_the_firmware_of_the_image(cluster: Cluster, profile: str) -> None:
    plan = cluster.change("POST", "/provisioner/plan", name="ova5", profile=IMAGE)
    assert plan["domain"]["firmware"] == "uefi"
    assert [check["ok"] for check in plan["checks"] if check["name"] == "firmware"] == [True]
