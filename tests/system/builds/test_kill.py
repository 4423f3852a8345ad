"""kill -9 at every stage: after a restart nothing of the build remains, and its row says why."""

import contextlib
import os
import signal
import time

import pytest
from cluster import Cluster
from scripts import STAGES, script

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

# Everything a build can hold while it is killed: mounted volumes, partitions, background processes.
HOLDING = {
    "prepare": "self.volumes.create(); self.volumes.format(); self.volumes.mount('/tmp/target')",
}
DISKS = {"sda": {"disk_size": 1, "filesystem": "ext4", "mountpoint": "/"}}


def stop_at(stage: str) -> str:
    """A script that says "here" in one stage, and then waits."""
    wait = "subprocess.Popen(['sleep', '300'])\nprint('here', flush=True)\ntime.sleep(300)"
    stages = {} if stage == "prepare" else {"prepare": HOLDING["prepare"] + "\nreturn"}
    stages[stage] = wait if stage != "prepare" else HOLDING["prepare"] + "\n" + wait
    return script(**stages)


@pytest.mark.parametrize("victim", ["build", "worker"])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_during_a_stage(cluster: Cluster, stage: str, victim: str) -> None:
    cluster.make_profile("held", stop_at(stage), disks=DISKS)
    # The limits of setup and create are short in these tests; the kill comes well before.
    task = cluster.create("held1", "held")
    cluster.wait_for_stage(task, stage, "here")
    os.kill(cluster.build_pid(task) if victim == "build" else cluster.worker_pid(), signal.SIGKILL)
    ended = cluster.wait(task, timeout_s=60)
    assert ended["build_state"] == "failed"
    assert ended["error"]["stage"] == stage
    assert "was killed" in ended["error"]["why"]
    assert cluster.request("GET", "/vm/held1").status_code == 404


def test_killed_when_the_guest_runs_already(cluster: Cluster) -> None:
    """Its QEMU holds the volumes: the domain has to go first."""
    cluster.make_profile("plain", script())
    for _ in range(3):
        task = cluster.create("held6", "plain")
        while (
            cluster.domain_state("held6") != "running" and cluster.get(f"/tasks/{task}")["state"] != "SUCCESS"
        ):
            time.sleep(0.005)
        with contextlib.suppress(StopIteration):
            os.kill(cluster.build_pid(task), signal.SIGKILL)
        ended = cluster.wait(task, timeout_s=30)
        if ended["build_state"] == "succeeded":  # it was quicker than we
            cluster.change("DELETE", "/vm/held6", delete_disks=True)


def test_whole_node_daemon_killed_and_started_again(cluster: Cluster) -> None:
    cluster.make_profile("held", stop_at("install"), disks=DISKS)
    task = cluster.create("held2", "held")
    cluster.wait_for_stage(task, "install", "here")
    os.kill(cluster.find_process("pvcnoded.main serve"), signal.SIGKILL)
    cluster.stack.up()
    ended = cluster.wait(task, timeout_s=60)
    assert ended["build_state"] == "failed" and "was killed" in ended["error"]["why"]


def test_node_daemon_stopped_in_order(cluster: Cluster) -> None:
    cluster.make_profile("held", stop_at("prepare"), disks=DISKS)
    task = cluster.create("held3", "held")
    cluster.wait_for_stage(task, "prepare", "here")
    cluster.stack.restart(["node"])
    ended = cluster.wait(task, timeout_s=60)
    assert ended["build_state"] == "failed"
    assert "the node daemon was stopped" in ended["error"]["why"]


@pytest.mark.filterwarnings("ignore:SelectableGroups:DeprecationWarning")  # Debian 12's kombu, at import
def test_second_delivery_of_an_ended_build_does_nothing(cluster: Cluster) -> None:
    from pvccommon import queue

    cluster.make_profile("held", script(setup="self.fail('once')"), disks=DISKS)
    task = cluster.create("held4", "held")
    before = cluster.wait(task)
    app = queue.create_celery(cluster.config.queue)
    queue.send_build(app, task, "hv1")
    later = cluster.create("held5", "held")
    cluster.wait(later)
    assert cluster.get(f"/tasks/{task}") == before
