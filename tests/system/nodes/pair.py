"""Two nodes as the tests use them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import libvirt
from cluster import Cluster
from redis import Redis
from scripts import script

from devstack import libvirt as stack_libvirt
from pvccommon.config import read_secret
from pvccommon.models import Build, BuildEvent

# Holds a device, a mount and a server of its own, and writes all the time.
HOLDING = """
self.volumes.create(); self.volumes.format(); self.volumes.mount('/tmp/target')
print('here', flush=True)
with open('/tmp/target/file', 'wb') as file:
    while True:
        file.write(os.urandom(1 << 20)); os.fsync(file.fileno()); time.sleep(0.02)
"""
BLANK = {"disk_size": 1}
MOUNTED = {**BLANK, "filesystem": "ext4", "mountpoint": "/"}
DISKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"sda": ("vms", MOUNTED), "sdb": ("local", BLANK)}
PLAIN: Mapping[str, tuple[str, Mapping[str, Any]]] = {"sda": ("vms", BLANK)}


class Pair(Cluster):
    """A cluster of hv1 and hv2."""

    def holding_profile(self, name: str) -> None:
        """Its builds are held in `prepare`, with a volume on Ceph mounted and one made on the node."""
        self.make(name, script(prepare=HOLDING), DISKS)

    def make(
        self,
        name: str,
        builder: str,
        disks: Mapping[str, tuple[str, Mapping[str, Any]]] = PLAIN,
        **system: Any,
    ) -> None:
        """A profile with templates and a script of its own."""
        self.change("POST", "/provisioner/script", name=name, data=builder)
        values = {"vcpus": 1, "vram": 256, "serial": True, "vnc": False, **system}
        self.change("POST", "/provisioner/template/system", name=name, **values)
        self.change("POST", "/provisioner/template/network", name=name)
        self.change("POST", "/provisioner/template/storage", name=name)
        for disk, (pool, columns) in disks.items():
            path = f"/provisioner/template/storage/{name}/disk/{disk}"
            self.change("POST", path, pool=pool, **columns)
        templates = {f"{kind}_template": name for kind in ("system", "network", "storage")}
        self.change(
            "POST", "/provisioner/profile", name=name, profile_type="provisioner", script=name, **templates
        )

    def row(self, task: str) -> Build:
        with self.database.session() as session:
            build: Build = session.get(Build, task)
        return build

    def events(self, task: str) -> list[tuple[str, str]]:
        """(stage, message) of the build's log."""
        with self.database.session() as session:
            rows = session.query(BuildEvent).filter_by(build=task).order_by(BuildEvent.seq)
            return [(row.stage, row.message) for row in rows]

    def objects(self) -> set[str]:
        """Everything there is in the Ceph pool."""
        return self._volumes()

    def redis(self) -> Redis:
        """The queue's own server."""
        settings = self.config.queue
        return Redis(settings.host, settings.port, settings.database, read_secret(settings.password_file))

    def domain_on(self, node: int, name: str) -> str:
        """`running`, `defined` or `missing`."""
        connection = libvirt.open(stack_libvirt.uri(self.stack.state, node))
        try:
            found = [domain for domain in connection.listAllDomains() if domain.name() == name]
            return "missing" if not found else "running" if found[0].isActive() else "defined"
        finally:
            connection.close()

    def wait_until_alive(self, *nodes: int) -> None:
        states = {f"hv{node}": "run" for node in nodes}
        wait_for(lambda: {name: self.node_state(name) for name in states} == states, "the nodes run")

    def wait_until_dead(self, node: int) -> None:
        wait_for(lambda: self.node_state(f"hv{node}") == "dead", f"hv{node} is dead")

    def node_state(self, name: str) -> str:
        return str(self.get(f"/node/{name}")[0]["daemon_state"])

    def wait_status(self, task: str, *words: str, timeout_s: float = 40) -> str:
        """Until the status of a task has all these words; returns it."""
        wait_for(
            lambda: all(word in self.get(f"/tasks/{task}")["status"] for word in words),
            lambda: f"{words} in {self.get(f'/tasks/{task}')}\n{self.log(task)}",
            timeout_s,
        )
        return str(self.get(f"/tasks/{task}")["status"])

    def footprint(self) -> set[str]:  # type: ignore[override]  # both nodes, as one set
        """What there is now of everything a build can leave, on both nodes."""
        found = {f"{kind} {name}" for kind, names in vars(super().footprint()).items() for name in names}
        connection = libvirt.open(stack_libvirt.uri(self.stack.state, 2))
        try:
            found |= {f"domain2 {domain.name()}" for domain in connection.listAllDomains()}
        finally:
            connection.close()
        found |= {f"console2 {path}" for path in (self.stack.state / "console2").glob("*")}
        return found | {f"node2 {path}" for path in (self.stack.state / "node2").rglob("*")}


def wait_for(condition: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.1)
