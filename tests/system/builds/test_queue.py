"""Workers that read nothing although they live, as Celery has been seen to do after Redis was killed."""

import time
import warnings

import pytest
from cluster import NOOP, Cluster

with warnings.catch_warnings():  # Debian 12's kombu uses what later Pythons will not have
    warnings.simplefilter("ignore", DeprecationWarning)
    from pvccommon import queue

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("no_leaks"),
    pytest.mark.filterwarnings("ignore:SelectableGroups:DeprecationWarning"),
]


@pytest.fixture
def cluster(directory_cluster: Cluster) -> Cluster:
    return directory_cluster


def stop_reading(cluster: Cluster, kind: str, name: str) -> None:
    """The worker stays connected and takes no message any more."""
    app = queue.create_celery(cluster.config.queue)
    node = cluster.config.node.name
    deadline = time.monotonic() + 60
    while not app.control.cancel_consumer(name, destination=[f"{kind}@{node}"], reply=True, timeout=5):
        assert time.monotonic() < deadline, "the worker does not answer"


def test_a_build_runs_although_no_message_is_read(cluster: Cluster) -> None:
    cluster.make_profile("unread", NOOP.read_text(), memory_mib=64)
    worker = cluster.worker_pid("builds")
    stop_reading(cluster, "builds", queue.build_queue(cluster.config.node.name))
    try:
        for vm in ("unread1", "unread2"):
            assert cluster.wait(cluster.create(vm, "unread"), timeout_s=90)["build_state"] == "succeeded"
            cluster.change("DELETE", f"/vm/{vm}", delete_disks=True)
        assert cluster.worker_pid("builds") == worker
    finally:
        cluster.stack.restart(["node"])


def test_a_worker_that_reads_no_commands_is_replaced(cluster: Cluster) -> None:
    worker = cluster.worker_pid("commands")
    stop_reading(cluster, "commands", queue.command_queue(cluster.config.node.name))
    begun = time.monotonic()
    assert cluster.get("/storage/ceph/pool")
    cluster.change("POST", "/storage/ceph/volume", pool="vms", volume="hand1", size="4M")
    assert cluster.worker_pid("commands") != worker, f"answered after {time.monotonic() - begun:.0f} s"
    cluster.change("DELETE", "/storage/ceph/volume/vms/hand1")
