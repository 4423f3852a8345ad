"""The template builder: clones of a disk image, grown and with an identity of their own."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import NOOP, Cluster
from guest_disk import Disk, digest, make_disk

from pvccommon import names
from pvccommon.models import ImageKind

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

BUILDER = NOOP.with_name("template.py")
GIB = 1024
IMAGE = "golden"
USERDATA = "#cloud-config\nusers: [default]\n"


@pytest.fixture(scope="module", params=["directory_cluster", "ceph_cluster"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Everything here is true for both kinds of pools."""
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image's volume."""
    disk = make_disk(tmp_path_factory.mktemp("image"))
    cluster.make_image(IMAGE, ImageKind.DISK, {"sda": disk})
    if cluster.request("GET", "/provisioner/userdata/users").status_code != 200:
        cluster.change("POST", "/provisioner/userdata", name="users", data=USERDATA)
    for size in (1, 2):
        disks = {
            "sda": {"disk_size": size},
            "sdb": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/srv"},
        }
        values = {"image": IMAGE, "userdata": "users"}
        cluster.make_profile(f"template{size}", BUILDER.read_text(), disks=disks, **values)
    yield next(volume.name for volume in cluster.pool.list_volumes() if volume.name.startswith("image"))
    cluster.remove_image(IMAGE)


@pytest.fixture
def vms(cluster: Cluster, image: str) -> Iterator[list[str]]:
    """Names of VMs, removed afterwards."""
    made: list[str] = []
    yield made
    for vm in made:
        cluster.change("DELETE", f"/vm/{vm}", delete_disks=True)


def build(cluster: Cluster, vms: list[str], vm: str, size: int, *arguments: str, **values: Any) -> str:
    """Build a VM; returns the log."""
    task = cluster.create(vm, f"template{size}", arg=list(arguments), **values)
    ended = cluster.wait(task)
    log = cluster.log(task)
    assert ended["build_state"] == "succeeded", f"{ended['error']}\n{log}"
    vms.append(vm)
    return log


def test_two_clones_differ_and_the_image_stays(cluster: Cluster, image: str, vms: list[str]) -> None:
    before = digest(cluster.pool, image)
    for vm, size in (("tpl1", 1), ("tpl2", 2)):
        log = build(cluster, vms, vm, size, "personalise=true", start_vm=False)
        assert "warning" not in log
        disk = Disk(cluster.pool, f"{vm}_sda")
        disk.check()
        assert disk.root_mib() == size * GIB - 5
        assert disk.read("/etc/hostname") == f"{vm}\n"
        assert disk.read("/var/lib/cloud/seed/nocloud/user-data") == USERDATA
        assert " /srv ext4 " in (disk.read("/etc/fstab") or "")
        assert "cdrom" not in cluster.domains()[vm]
    assert digest(cluster.pool, image) == before
    assert Disk(cluster.pool, "tpl1_sda").read("/etc/hostname") == "tpl1\n"


def test_without_mounting_it_starts_with_a_cdrom(cluster: Cluster, image: str, vms: list[str]) -> None:
    log = build(cluster, vms, "tpl3", 1)
    assert "the guest is not told where to mount sdb" in log
    assert cluster.domain_state("tpl3") == "running"
    assert "cdrom" in cluster.domains()["tpl3"]
    assert cluster.pool.volume_or_none("tpl3_answers")


def test_killed_while_it_changes_the_clone_leaves_the_image_as_it_was(cluster: Cluster, image: str) -> None:
    slow = BUILDER.read_text().replace(
        "self.image.make_identity()",
        "self.image.make_identity(); import time; print('here', flush=True); time.sleep(300)",
    )
    disks = {"sda": {"disk_size": 1}}
    cluster.make_profile("slow", slow, disks=disks, image=IMAGE)
    before = digest(cluster.pool, image)
    task = cluster.create("tpl4", "slow", arg=["personalise=true"])
    cluster.wait_for_stage(task, "install", "here")
    os.kill(cluster.build_pid(task), signal.SIGKILL)
    ended = cluster.wait(task, timeout_s=60)
    assert ended["build_state"] == "failed" and "was killed" in ended["error"]["why"]
    assert digest(cluster.pool, image) == before
    base = cluster.pool.stat_snapshot(image, names.IMAGE_SNAPSHOT)
    assert base.protected and not base.children
