"""Builds that ended badly: run again from the same plan, and their volumes kept until they are discarded."""

import os
import signal
import time
from typing import Any

import pytest
from cluster import Cluster
from lxml import etree
from scripts import script

from pvccommon.models import Build

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

SECRET = """
from vmbuilder import Argument
def require_right(builder):
    if builder.arguments["password"] != "right one":
        builder.fail("the password is wrong")
"""
SECRET_ARGUMENTS = 'arguments = (Argument("password", secret=True),)'
DISKS = {"sda": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/"}, "sdb": {"disk_size": 1}}


def secretive(**stages: str) -> str:
    """A script that fails unless it gets the right password."""
    source = script(module=SECRET, setup="require_right(self)", **stages)
    return source.replace("api_version = 1", f"api_version = 1\n    {SECRET_ARGUMENTS}")


def plan_of(cluster: Cluster, task: str) -> Any:
    with cluster.database.session() as session:
        return session.get(Build, task).plan


def retry(cluster: Cluster, task: str, **values: Any) -> dict[str, Any]:
    return cluster.wait(cluster.change("POST", f"/tasks/{task}/retry", **values)["task_id"])


def require_same_vm(cluster: Cluster, vm: str, plan: Any) -> None:
    domain = etree.fromstring(cluster.domains()[vm])
    macs = [mac.get("address") for mac in domain.findall("devices/interface/mac")]
    assert (domain.findtext("uuid"), macs) == (plan["vm"]["uuid"], [net["mac"] for net in plan["networks"]])
    cluster.change("DELETE", f"/vm/{vm}", delete_disks=True)


def end_of_node(cluster: Cluster) -> None:
    """Stop the node daemon in order, and wait for its end."""
    pid = cluster.find_process("pvcnoded.main serve")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < deadline:
        time.sleep(0.05)


def test_retry_of_a_failed_build_makes_the_same_vm(cluster: Cluster) -> None:
    cluster.make_profile("secretive", secretive())
    failed = cluster.build("again1", "secretive", arg="password=wrong one")
    assert "password is wrong" in failed["error"]["why"]
    ended = retry(cluster, failed["id"], arg="password=right one")
    assert (ended["build_state"], ended["retry_of"]) == ("succeeded", failed["id"]), cluster.log(ended["id"])
    assert f"retry of build {failed['id']}" in cluster.log(ended["id"])
    with cluster.database.session() as session:
        assert [session.get(Build, task["id"]).secrets for task in (failed, ended)] == [{}, {}]
    require_same_vm(cluster, "again1", plan_of(cluster, failed["id"]))


def test_retry_after_a_kill_has_the_secrets(cluster: Cluster) -> None:
    cluster.make_profile("killed", secretive(install="print('here', flush=True); time.sleep(2)"))
    task = cluster.create("again2", "killed", arg="password=right one")
    cluster.wait_for_stage(task, "install", "here")
    os.kill(cluster.build_pid(task), signal.SIGKILL)
    assert f"retry {task}" in cluster.wait(task)["error"]["hint"]
    ended = retry(cluster, task)
    assert ended["build_state"] == "succeeded", cluster.log(ended["id"])
    require_same_vm(cluster, "again2", plan_of(cluster, task))


@pytest.mark.parametrize(
    ("stage", "how", "kept"),
    [
        ("prepare", "fails", ["vms/keep1_sda", "vms/keep1_sdb"]),
        ("install", "fails", ["vms/keep1_sda", "vms/keep1_sdb"]),
        ("install", "killed", ["vms/keep1_sda", "vms/keep1_sdb"]),
        ("install", "cancelled", ["vms/keep1_sda", "vms/keep1_sdb"]),
    ],
)
def test_volumes_are_kept_until_discarded(cluster: Cluster, stage: str, how: str, kept: list[str]) -> None:
    last = "self.fail('on purpose')" if how == "fails" else "print('here', flush=True); time.sleep(300)"
    prepare = "self.volumes.create(); self.volumes.format(); self.volumes.mount('/tmp/target')"
    stages = {"prepare": f"{prepare}\nreturn", "install": last}
    if stage == "prepare":
        stages = {"prepare": f"{prepare}\n{last}"}
    cluster.make_profile("keeping", script(**stages), disks=DISKS)
    task = cluster.create("keep1", "keeping", keep_on_failure=True)
    if how != "fails":
        cluster.wait_for_stage(task, stage, "here")
    if how == "killed":
        os.kill(cluster.worker_pid(), signal.SIGKILL)
    elif how == "cancelled":
        cluster.change("POST", f"/tasks/{task}/cancel")
    ended = cluster.wait(task)
    assert ended["build_state"] == ("cancelled" if how == "cancelled" else "failed")
    assert ended["kept_volumes"] == kept
    assert "keep1" not in cluster.domains()
    assert cluster.request("GET", "/vm/keep1").status_code == 404
    require_kept(cluster, task, kept)
    cluster.change("POST", f"/tasks/{task}/discard")
    assert cluster.request("POST", f"/tasks/{task}/discard").status_code == 400
    assert cluster.get(f"/tasks/{task}")["kept_volumes"] == []
    assert cluster.pool.list_volumes() == []


def require_kept(cluster: Cluster, task: str, kept: list[str]) -> None:
    """The volumes are there, closed, told of, and in the way of others."""
    hint = f"pvc cluster task discard {task}"
    assert all(f"volume {name} is kept" in cluster.log(task) for name in kept)
    assert hint in cluster.get(f"/tasks/{task}")["status"]
    for name in kept:
        with cluster.pool.open_device(name.partition("/")[2], read_only=True):
            pass
    for answer in (
        cluster.request("POST", "/provisioner/create", name="keep1", profile="keeping"),
        cluster.request("POST", f"/tasks/{task}/retry"),
    ):
        assert (answer.status_code, answer.json()["hint"]) == (400, hint)


def test_what_is_discarded_while_the_node_is_down_goes_when_it_is_back(cluster: Cluster) -> None:
    cluster.make_profile("keeping-one", script(install="self.fail('on purpose')"))
    task = cluster.build("keep2", "keeping-one", keep_on_failure=True)["id"]
    end_of_node(cluster)
    try:
        assert "hv1 has not done it yet" in cluster.change("POST", f"/tasks/{task}/discard")["message"]
        assert cluster.pool.volume_or_none("keep2_sda") is not None
    finally:
        cluster.stack.up()
    deadline = time.monotonic() + 20
    while cluster.pool.volume_or_none("keep2_sda") is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "removed volume vms/keep2_sda" in cluster.log(task)
