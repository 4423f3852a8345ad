"""What is broken under a running build, and how it is mended."""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from cluster import Cluster, processes

from chaos.small_disks import HOST, POOL, fill, free
from devstack import ceph
from devstack.process import Process

FLAG_TIMEOUT_S = 30
FIRST = "chaos_first"
KEEPER = "pvcnoded.sandbox import keeper"  # its children have the same command line


class NothingToStrike(Exception):
    """What the fault needs does not exist at this point, such as a sandbox before it is opened."""


class Fault(ABC):
    """Struck once at a point, mended once: soon, or when the build has ended."""

    name: ClassVar[str]
    pools: ClassVar[tuple[str, ...]] = ("directory", "ceph")
    mended_after_s: ClassVar[float] = 0.0
    mended_at_the_end: ClassVar[bool] = False

    @abstractmethod
    def strike(self, cluster: Cluster) -> None: ...

    def mend(self, cluster: Cluster) -> None:
        """Safe to repeat, and when it has not struck."""


class WorkerKilled(Fault):
    """Its supervisor starts it again."""

    name = "worker"

    def strike(self, cluster: Cluster) -> None:
        dependent = builds_under_way(cluster)
        kill(cluster.worker_pid())
        wait_until_dead(dependent)


class SandboxKilled(Fault):
    """The process all others of the sandbox hang on."""

    name = "sandbox"

    def strike(self, cluster: Cluster) -> None:
        found = processes()
        for pid, line in found.items():
            if KEEPER in line and cluster.is_ours(pid) and KEEPER not in found.get(parent_of(pid), ""):
                kill(pid)
                return
        raise NothingToStrike


class ServiceKilled(Fault):
    """kill -9, and started again a little later, as systemd would."""

    service: ClassVar[str]
    mended_after_s = 1.0

    def strike(self, cluster: Cluster) -> None:
        process = Process.load_or_none(cluster.stack.state.record(self.service))
        assert process and process.alive, f"{self.service} does not run"
        kill(process.pid)

    def mend(self, cluster: Cluster) -> None:
        cluster.stack.up(only=[self.service])


class NodeKilled(ServiceKilled):
    """Builds and workers end with it."""

    name = service = "node"

    def strike(self, cluster: Cluster) -> None:
        dependent = builds_under_way(cluster)
        super().strike(cluster)
        wait_until_dead(dependent)


class RedisRestarted(ServiceKilled):
    name = service = "redis"


class PostgresqlRestarted(ServiceKilled):
    name = service = "postgresql"


class LibvirtRestarted(ServiceKilled):
    name = service = "libvirtd"


class OsdRestarted(ServiceKilled):
    name = "osd"
    service = "ceph-osd"
    pools = ("ceph",)
    mended_after_s = 3.0


class HostFull(Fault):
    """The file system with the node's state, libvirt's files, consoles and logs."""

    name = "host full"
    mended_at_the_end = True

    def strike(self, cluster: Cluster) -> None:
        fill(small_disk(cluster, HOST))

    def mend(self, cluster: Cluster) -> None:
        free(small_disk(cluster, HOST))


class PoolFull(Fault):
    """A directory's file system filled; a quota on Ceph that is used up."""

    name = "pool full"
    mended_at_the_end = True

    def strike(self, cluster: Cluster) -> None:
        if cluster.stack.state.pool_kind == "ceph":
            cluster.pool.create_volume(FIRST, 2**20)  # so that the pool has objects of its own to count
            cluster.pool.delete_volume(FIRST)
            ceph.set_quota(cluster.stack.state, objects=1)
            ceph.wait_until_full(cluster.stack.state)
        else:
            fill(small_disk(cluster, POOL))

    def mend(self, cluster: Cluster) -> None:
        if cluster.stack.state.pool_kind == "ceph":
            ceph.set_quota(cluster.stack.state, objects=0)
            ceph.wait_until_full(cluster.stack.state, full=False)
        else:
            free(small_disk(cluster, POOL))


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        WorkerKilled(),
        SandboxKilled(),
        NodeKilled(),
        RedisRestarted(),
        PostgresqlRestarted(),
        LibvirtRestarted(),
        OsdRestarted(),
        PoolFull(),
        HostFull(),
    )
}


def kill(pid: int) -> None:
    """SIGKILL, and wait until it has worked."""
    os.kill(pid, signal.SIGKILL)
    wait_until_dead([pid])


def builds_under_way(cluster: Cluster) -> list[int]:
    return [pid for pid, line in processes().items() if "pvcnoded.build " in line and cluster.is_ours(pid)]


def wait_until_dead(pids: Iterable[int]) -> None:
    """Else the build could do a step more in the moment between a kill and its effect."""
    wait_for(lambda: not set(pids) & set(processes()), "killed processes to end")


def parent_of(pid: int) -> int:
    """Field 4 of proc(5)'s stat; 0 when the process has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def small_disk(cluster: Cluster, name: str) -> Path:
    return cluster.stack.state / name


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + FLAG_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {FLAG_TIMEOUT_S} s for {what}")
        time.sleep(0.02)
