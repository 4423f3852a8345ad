"""A cancel ends a build within five seconds, from whatever state, also when its node does not answer."""

import os
import signal
import time
from typing import Any

import pytest
from cluster import Cluster
from scripts import STAGES, script

from pvccommon.models import Build

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

WAIT = "print('here', flush=True); time.sleep(300)"
DISKS = {"sda": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/"}}
MOUNTED = "self.volumes.create(); self.volumes.format(); self.volumes.mount('/tmp/target')"
LIMIT_S = 5


def waiting_in(cluster: Cluster, stage: str, vm: str = "stop1", **values: Any) -> str:
    """A build that waits in a stage, with mounted volumes as soon as there are any."""
    stages = {"prepare": f"{MOUNTED}\nreturn"}
    if stage == "load":
        source = script(module=WAIT, **stages)
    elif stage == "prepare":
        source = script(prepare=f"{MOUNTED}\n{WAIT}")
    else:
        source = script(**stages, **{stage: WAIT})
    cluster.make_profile("waiting", source, disks=DISKS)
    task = cluster.create(vm, "waiting", **values)
    cluster.wait_for_stage(task, stage, "here")
    return task


def cancel(cluster: Cluster, task: str, state: str = "cancelled") -> dict[str, Any]:
    """Cancel and wait; it must not take too long from acceptance to the end."""
    started = time.monotonic()
    cluster.change("POST", f"/tasks/{task}/cancel")
    ended = cluster.wait(task, timeout_s=20)
    took_s = time.monotonic() - started
    print(f"cancelled in {took_s:.2f} s")
    assert ended["build_state"] == state, ended
    assert took_s < LIMIT_S, f"{took_s:.1f} s\n{cluster.log(task)}"
    return ended


@pytest.mark.parametrize("stage", ["load", *STAGES])
def test_from_every_stage(cluster: Cluster, stage: str) -> None:
    ended = cancel(cluster, waiting_in(cluster, stage))
    assert (ended["error"]["kind"], ended["error"]["stage"]) == ("cancelled", stage)


def test_while_the_domain_starts(cluster: Cluster) -> None:
    cluster.make_profile("plain", script())
    task = cluster.create("stop2", "plain")
    while cluster.get(f"/tasks/{task}")["stage"] != "start":
        time.sleep(0.005)
    started = time.monotonic()
    answer = cluster.request("POST", f"/tasks/{task}/cancel")
    ended = cluster.wait(task, timeout_s=20)
    assert time.monotonic() - started < LIMIT_S
    assert ended["build_state"] == ("cancelled" if answer.status_code == 200 else "succeeded")
    if ended["build_state"] == "succeeded":  # it was quicker than we
        cluster.change("DELETE", "/vm/stop2", delete_disks=True)


def test_while_it_is_undone(cluster: Cluster) -> None:
    """Something holds its volume, so that it cannot be removed: the cancel sees to it once that is free."""
    held = "self._channel.request('volume.create', pool='vms', volume='stop3_sda'); time.sleep(1)"
    cluster.make_profile("held-open", script(prepare=f"print('here', flush=True)\n{held}\nself.fail('x')"))
    task = cluster.create("stop3", "held-open")
    deadline = time.monotonic() + 20
    while cluster.pool.volume_or_none("stop3_sda") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with cluster.pool.open_device("stop3_sda"):
        while cluster.get(f"/tasks/{task}")["build_state"] != "undoing" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "is being undone" in cluster.change("POST", f"/tasks/{task}/cancel")["message"]
    assert cancel(cluster, task, "failed")["error"]["why"].endswith("x")


def test_when_its_process_hangs(cluster: Cluster) -> None:
    task = waiting_in(cluster, "install")
    os.kill(cluster.build_pid(task), signal.SIGSTOP)
    cancel(cluster, task)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_when_its_node_does_not_answer(cluster: Cluster, how: str) -> None:
    """The build ends at once; what it made goes when the node is back."""
    task = waiting_in(cluster, "install", keep_on_failure=how == "killed")
    stop, start = {
        "killed": (cluster.stack.kill_node, cluster.stack.start_node),
        "frozen": (cluster.stack.freeze_node, cluster.stack.thaw_node),
    }[how]
    stop(1)
    try:
        ended = cancel(cluster, task)
        assert "hv1 does not answer" in ended["status"]
        assert cluster.pool.volume_or_none("stop1_sda") is not None
        again = cluster.request("POST", "/provisioner/create", name="stop1", profile="waiting")
        assert again.status_code == 400
        assert ended["kept_volumes"] == (["vms/stop1_sda"] if how == "killed" else [])
    finally:
        start(1)
    if how == "killed":
        assert "Removed" in cluster.change("POST", f"/tasks/{task}/discard")["message"]
    require_undone(cluster, task)


def require_undone(cluster: Cluster, task: str) -> None:
    """Everything of the build is gone, and its row is as the cancel has left it."""
    deadline = time.monotonic() + 20
    while cluster.unsettled_rows() or cluster.pool.volume_or_none("stop1_sda") is not None:
        assert time.monotonic() < deadline, cluster.unsettled_rows()
        time.sleep(0.1)
    with cluster.database.session() as session:
        assert session.get(Build, task).state == "cancelled"


def test_of_a_build_that_waits_for_a_node_that_hangs(cluster: Cluster) -> None:
    cluster.make_profile("plain", script())
    os.kill(cluster.worker_pid(), signal.SIGSTOP)
    try:
        task = cluster.create("stop4", "plain")
        cluster.stack.freeze_node(1)
        assert cluster.get(f"/tasks/{task}")["build_state"] == "queued"
        cancel(cluster, task)
    finally:
        cluster.stack.thaw_node(1)
