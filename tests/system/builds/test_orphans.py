"""What looks like ours and no row knows is listed and can be removed; what is somebody else's never is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import libvirt
import pytest
from cluster import NOOP, Cluster
from scripts import script

from devstack import libvirt as stack_libvirt
from pvccommon.errors import NotFound
from pvccommon.storage import rbd, rbd_images
from pvccommon.storage.export import OWNER
from pvccommon.storage.image_users import ProcessIdentity
from pvccommon.storage.left_mappings import left_exports
from pvcnoded import orphans
from pvcnoded.domain_mark import DomainMark, mark_domain
from pvcnoded.orphans import OrphanFinder, Owners

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disk}</devices></domain>"""
DISK = "<disk type='file'><source file='{path}'/><target dev='sda' bus='sata'/></disk>"
# Opens a volume of the pool as a device, as a build does, and says which.
OPENER = """
import sys, time
from pvccommon.config import load_config
from pvccommon.storage import pools_from_config
with pools_from_config(load_config(sys.argv[1]))["vms"].open_device(sys.argv[2]) as device:
    print(device.path, flush=True)
    time.sleep(60)
"""


def listed(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Orphans by name."""
    return {orphan["name"]: orphan for orphan in cluster.get("/orphans")}


def remove(cluster: Cluster, *ids: str) -> Any:
    return cluster.change("DELETE", "/orphans", orphan=list(ids))


def plant_volume(cluster: Cluster, name: str, *, old: bool = True) -> None:
    cluster.pool.create_volume(name, 2**20)
    if old:
        make_old(cluster, name)


def make_old(cluster: Cluster, name: str) -> None:
    directory = cluster.stack.state / "pools" / "vms" / "volumes" / name
    os.utime(directory, (0, time.time() - orphans.MIN_AGE_S - 60))


@contextlib.contextmanager
def domain(cluster: Cluster, name: str, *, mark: str | None, disk: str = "") -> Iterator[None]:
    connection = libvirt.open(stack_libvirt.uri(cluster.stack.state))
    try:
        xml = DOMAIN.format(name=name, disk=disk)
        connection.defineXML(mark_domain(xml, DomainMark(mark, "0123456789abcdef")) if mark else xml)
        yield
        with contextlib.suppress(libvirt.libvirtError):
            connection.lookupByName(name).undefine()
    finally:
        connection.close()


def test_planted_volumes_and_domains_are_listed_and_removed(cluster: Cluster) -> None:
    ours = cluster.config.cluster.name
    assert cluster.get("/orphans") == []
    plant_volume(cluster, "lost1_sda")
    plant_volume(cluster, "lost2_sda")
    plant_volume(cluster, "young_sda", old=False)
    plant_volume(cluster, "golden")
    disk = DISK.format(path=cluster.pool.disk_source("lost2_sda").path)
    with domain(cluster, "lost2", mark=ours, disk=disk), domain(cluster, "foreign", mark="another"):
        with domain(cluster, "stranger", mark=None):
            found = listed(cluster)
            assert set(found) == {"vms/lost1_sda", "lost2"}
            assert (found["lost2"]["kind"], found["lost2"]["node"]) == ("domain", "hv1")
            assert found["vms/lost1_sda"]["size_bytes"] == 2**20
            # What is open at this moment is somebody's.
            with cluster.pool.open_device("lost1_sda"):
                assert set(listed(cluster)) == {"lost2"}
                refused = remove(cluster, found["vms/lost1_sda"]["id"], "volume:hv1:vms:golden")
                assert (refused["removed"], len(refused["failed"])) == ([], 2)
            answer = remove(cluster, *(orphan["id"] for orphan in found.values()))
            assert answer["failed"] == [] and len(answer["removed"]) == 2
            assert set(cluster.domains()) >= {"foreign", "stranger"}
    # With the domain gone nobody names its volume any more.
    (last,) = cluster.get("/orphans")
    assert last["name"] == "vms/lost2_sda"
    assert remove(cluster, last["id"])["message"] == "Removed 1 of 1 orphans."
    for left in ("young_sda", "golden"):
        cluster.pool.delete_volume(left)


def test_what_rows_know_is_never_an_orphan(cluster: Cluster) -> None:
    """Volumes of a VM, and those kept of a failed build, however old."""
    cluster.make_profile("noop", NOOP.read_text(), disks={"sda": {"disk_size": 1}, "sdb": {"disk_size": 2}})
    cluster.build("mine1", "noop")
    for disk in ("sda", "sdb"):
        make_old(cluster, f"mine1_{disk}")
    assert cluster.get("/orphans") == []
    cluster.change("POST", "/vm/mine1/state", state="stop")
    assert cluster.get("/orphans") == []
    # Its disks stay when it is removed without them; then nobody knows them.
    cluster.change("DELETE", "/vm/mine1", delete_disks=False)
    found = listed(cluster)
    assert set(found) == {"vms/mine1_sda", "vms/mine1_sdb"}
    assert remove(cluster, *(orphan["id"] for orphan in found.values()))["failed"] == []
    cluster.make_profile("kept", script(install="self.fail('on purpose')"))
    task = cluster.build("mine2", "kept", keep_on_failure=True)["id"]
    make_old(cluster, "mine2_sda")
    assert cluster.get("/orphans") == []
    cluster.change("POST", f"/tasks/{task}/discard")


def test_device_that_a_stranger_keeps(cluster: Cluster) -> None:
    plant_volume(cluster, "young_sda", old=False)
    command = [sys.executable, "-P", "-c", OPENER, cluster.environment["PVC_CONFIG"], "young_sda"]
    owner = subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    device = owner.stdout.readline().strip()
    holder = subprocess.Popen(["sh", "-c", 'exec 3<"$1"; echo; exec sleep 60', "sh", device],
                              stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    assert cluster.get("/orphans") == []
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    found = listed(cluster)
    assert set(found) == {device} and "vms/young_sda" in found[device]["why"]
    answer = remove(cluster, found[device]["id"])
    assert str(holder.pid) in answer["failed"][0]["message"]
    holder.kill()
    holder.wait()
    for stream in (owner.stdout, holder.stdout):
        stream.close()
    assert cluster.get("/orphans") == []
    cluster.pool.delete_volume("young_sda")


def test_daemon_that_has_outlived_its_owner(cluster: Cluster) -> None:
    """Known by the owner in its environment; that of a living one is left alone."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = ProcessIdentity.current()
    path = cluster.stack.state / "pools" / "vms" / "images"
    image = f'{{"driver": "null-co", "x": "{path}", "node-name": "volume"}}'
    fake = ["qemu-storage-daemon", "-c", "read line", "--blockdev", image]
    daemons = []
    for identity in (replace(alive, pid=dead.pid), alive):
        owner = {OWNER: identity.text}
        daemons.append(subprocess.Popen(fake, executable="/bin/sh", env=owner, stdin=subprocess.PIPE))
    try:
        deadline = time.monotonic() + 5
        while not left_exports(lambda _: True) and time.monotonic() < deadline:
            time.sleep(0.01)
        (found,) = cluster.get("/orphans")
        assert found["name"] == f"qemu-storage-daemon/{daemons[0].pid}"
        assert len(remove(cluster, found["id"])["removed"]) == 1
        assert daemons[0].wait(timeout=5) == -signal.SIGKILL
        assert daemons[1].poll() is None
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
            assert daemon.stdin
            daemon.stdin.close()


def test_orphans_of_ceph(ceph_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster keeps the times, so nothing here is old enough: only the finder is told otherwise."""
    pool = ceph_cluster.pool
    pool.create_volume("lost1_sda", 2**20)
    pool.create_volume("known_sda", 2**20)
    names = ["lost1_sda", "known_sda"]
    assert ceph_cluster.get("/orphans") == []
    owners = Owners(volumes={"vms/known_sda"}, domains=set())
    finder = OrphanFinder("hv1", "pvc", {"vms": pool}, ceph_cluster._hypervisor, lambda: owners)
    # Half made, by a process of a host that is not here.
    assert isinstance(pool, rbd.RbdPool)
    pool._create_image(f".new-{'0' * 32}-1-1-abcdef01", 2**20)
    try:
        assert list(finder.find(["vms"])) == []
        monkeypatch.setattr(orphans, "MIN_AGE_S", -60)
        monkeypatch.setattr(rbd_images, "FORGOTTEN_S", -60)
        with pool.open_device("lost1_sda"):
            assert [orphan.inner[:5] for orphan in finder.find(["vms"])] == [".new-"]
        found = {orphan.inner[:5]: orphan for orphan in finder.find(["vms"])}
        assert set(found) == {".new-", "lost1"}
        assert {orphan.node for orphan in found.values()} == {None}
        for orphan in found.values():
            finder.remove(orphan)
        assert list(finder.find(["vms"])) == []
        with pytest.raises(NotFound):
            finder.remove(found[".new-"])
        names.remove("lost1_sda")
    finally:
        for name in names:
            pool.delete_volume(name)
