"""Builds over a pool of Ceph: the same tests, and what only network disks have."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_kill
from cluster import Cluster
from lxml import etree
from test_builds import (
    noop,
    remove,
    test_disk_can_be_a_clone_of_another_vm_s,
    test_vm_can_be_defined_without_being_started,
    test_vm_runs_from_its_own_blank_disks_and_is_removed_with_them,
)
from test_iso import (
    iso,
    test_installed_vm_that_is_not_to_be_started_is_only_defined,
    test_two_vms_use_one_iso_and_are_stopped_and_removed_with_it,
    test_worker_is_killed_while_the_guest_installs,
)

from devstack import ceph
from pvccommon.errors import Busy
from pvccommon.storage.ceph import read_key

__all__ = [
    "iso",
    "noop",
    "test_disk_can_be_a_clone_of_another_vm_s",
    "test_installed_vm_that_is_not_to_be_started_is_only_defined",
    "test_two_vms_use_one_iso_and_are_stopped_and_removed_with_it",
    "test_vm_can_be_defined_without_being_started",
    "test_vm_runs_from_its_own_blank_disks_and_is_removed_with_them",
    "test_worker_is_killed_while_the_guest_installs",
]

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
def cluster(ceph_cluster: Cluster) -> Cluster:
    return ceph_cluster


@pytest.mark.parametrize(("stage", "victim"), [("prepare", "build"), ("install", "worker")])
def test_killed_with_volumes_mapped(cluster: Cluster, stage: str, victim: str) -> None:
    """The dead client is fenced: nobody waits for the cluster to notice."""
    started = time.monotonic()
    test_kill.test_killed_during_a_stage(cluster, stage, victim)
    assert time.monotonic() - started < 25


def test_disks_are_the_cluster_s_and_the_key_is_nowhere(cluster: Cluster, noop: str) -> None:
    assert cluster.build("net1", noop)["state"] == "SUCCESS"
    sources = etree.fromstring(cluster.domains()["net1"]).findall("devices/disk/source")
    assert [source.get("name") for source in sources] == ["vms/net1_sda", "vms/net1_sdb"]
    assert {source.find("auth").get("username") for source in sources} == {ceph.CLIENT}
    for refused in (
        lambda: cluster.pool.open_device("net1_sda").__enter__(),
        lambda: cluster.pool.delete_volume("net1_sda"),
    ):
        with pytest.raises(Busy):
            refused()
    assert readable_by_others(cluster, key_text(cluster)) == []
    remove(cluster, "net1")


def test_node_says_how_volumes_become_devices(cluster: Cluster) -> None:
    pool = cluster.get("/node/hv1")[0]["pools"]["vms"]
    assert (pool["driver"], pool["mapping"]) == ("rbd", cluster.pool.mapping())


def test_pools_are_made_and_removed(cluster: Cluster) -> None:
    pools, volumes = "/storage/ceph/pool", "/storage/ceph/volume"
    new = {"pool": "made", "pgs": 8, "replcfg": "copies=1,mincopies=1", "tier": "default"}
    cluster.change("POST", pools, **new)
    assert cluster.request("POST", pools, **new).status_code == 400
    refused = cluster.request("POST", pools, **{**new, "pool": "taped", "tier": "nvme"})
    assert refused.status_code == 400, refused.text
    assert "taped" not in ceph.ceph(cluster.stack.state, "osd", "pool", "ls")
    # The cluster counts a new pool after some seconds, and the node reports it then.
    until(lambda: named(cluster, "made").get("error", "") is None)
    row = named(cluster, "made")
    assert (row["pgs"], row["tier"], row["driver"], row["node"]) == (8, "default", "rbd", None)
    cluster.change("POST", volumes, pool="made", volume="a", size="8M")
    cluster.change("POST", f"{volumes}/made/a/clone", new_volume="b")
    assert named(cluster, "made")["volume_count"] == 2
    sure = {"yes-i-really-mean-it": "yes"}
    assert "2 volumes: a, b" in cluster.request("DELETE", f"{pools}/made", **sure).json()["message"]
    for name in ("b", "a"):
        cluster.change("DELETE", f"{volumes}/made/{name}")
    cluster.change("PUT", f"{pools}/made", pgs=16)
    cluster.change("DELETE", f"{pools}/made", **sure)
    assert "made" not in ceph.ceph(cluster.stack.state, "osd", "pool", "ls")
    until(lambda: named(cluster, "made") == {})
    assert cluster.request("DELETE", f"{pools}/vms", **sure).status_code == 400


def named(cluster: Cluster, name: str) -> dict[str, Any]:
    return next((row for row in cluster.get("/storage/ceph/pool") if row["name"] == name), {})


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def key_text(cluster: Cluster) -> str:
    state = cluster.stack.state
    line = next(line for line in ceph.keyring(state).read_text().splitlines() if "key =" in line)
    assert read_key(ceph.keyring(state), f"client.{ceph.CLIENT}")
    return line.partition("=")[2].strip()


def readable_by_others(cluster: Cluster, secret: str) -> list[str]:
    """Logs, and files somebody besides root could open, that have the secret in them."""
    state = cluster.stack.state
    skipped = (ceph.directory(state), state / "postgresql", state / "redis")
    found = []
    for path in state.path.rglob("*"):
        if path.is_file() and not path.is_symlink() and not any(path.is_relative_to(s) for s in skipped):
            if secret.encode() in Path(path).read_bytes():
                found.append(str(path))
    return found
