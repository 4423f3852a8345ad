"""The stack as a whole: its services in order, up and down."""

import os
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack import libvirt as libvirt_service
from devstack import process
from devstack.api import Api
from devstack.ceph import CephMgr, CephMon, CephOsd
from devstack.configuration import merged, node_name, write_configuration
from devstack.daemon import CODE, python_path
from devstack.leftovers import find_leftovers, remove_leftovers
from devstack.libvirt import Libvirtd, Virtlogd
from devstack.node import Node
from devstack.postgresql import Postgresql
from devstack.process import Process
from devstack.redis import Redis
from devstack.service import Service
from devstack.state import (
    CHECKOUT,
    DEFAULT_ROOT,
    PoolKind,
    State,
    create_searchable,
    default_path,
    numbered,
)
from pvccommon.errors import EnvironmentFault, NotFound, WrongInput, WrongState

# In the order of starting; stopped the other way round.
CEPH: tuple[type[Service], ...] = (CephMon, CephMgr, CephOsd)
LIBVIRT: tuple[type[Service], ...] = (Virtlogd, Libvirtd)
SERVICES: tuple[type[Service], ...] = (Postgresql, Redis, *CEPH, *LIBVIRT, Api, Node)
OF_EACH_NODE: tuple[type[Service], ...] = (*LIBVIRT, Node)
GROUPS: dict[str, tuple[type[Service], ...]] = {"libvirt": LIBVIRT, "ceph": CEPH, "nodes": (Node,)}
RESTARTED = ("api", "nodes")
# Temporary stacks: how their directories begin, and the file that remembers who made one.
TEMPORARY = "test-"
OWNER = "owner.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServiceStatus:
    name: str
    pid: int | None
    address: str
    log: str

    @property
    def running(self) -> bool:
        return self.pid is not None


@dataclass(frozen=True)
class Part:
    """A service of the stack, or of one of its nodes."""

    cls: type[Service]
    node: int = 1

    @property
    def name(self) -> str:
        return numbered(self.cls.name, self.node)

    @property
    def names(self) -> set[str]:
        """What it can be called by: itself, its groups, and the daemon of a node by that node."""
        own = {node_name(self.node)} if self.cls is Node else set()
        return {self.name, *own, *(group for group, classes in GROUPS.items() if self.cls in classes)}


class Stack:
    """One stack, known by its state directory. `settings` are merged over the generated configuration."""

    def __init__(self, path: Path | None = None, say: Say = lambda line: None) -> None:
        self.state = State(path or default_path())
        self._say = say

    def up(
        self,
        *,
        only: Collection[str] = (),
        settings: Mapping[str, Any] | None = None,
        pool: PoolKind | None = None,
        nodes: int | None = None,
    ) -> None:
        """Start what does not run, and wait until all of it serves. Safe to repeat.

        `only` names services (`libvirt` for its two, `ceph` for its three); `settings` is remembered for the
        next time, and so are the kind of pool, `directory` unless the first `up` says otherwise, and the
        number of nodes, else one.
        """
        require_root()
        select(only, nodes or self.state.nodes)
        with self.state.lock():
            self.state.create(pool, nodes)
            self.state.choose_ports(running=any(self._service(part).process for part in self._parts()))
            self._remember(settings or {})
            write_configuration(self.state)
            for part in self._wanted(only):
                self._start(self._service(part))

    def restart(self, only: Collection[str] = RESTARTED) -> None:
        """Stop and start services: new code, new configuration."""
        require_root()
        select(only, self.state.nodes)
        with self.state.lock():
            self._require()
            write_configuration(self.state)
            wanted = self._wanted(only)
            for part in reversed(wanted):
                self._stop(self._service(part))
            for part in wanted:
                self._start(self._service(part))

    # ---- one node, for tests

    def node_processes(self, node: int, *, libvirt: bool = False) -> list[int]:
        """The daemon of a node, its workers, builds and all they started; with `libvirt` its VMs, too."""
        daemon = Process.load_or_none(self.state.record(self._service(Part(Node, node)).name))
        found = process.tree(daemon) if daemon else []
        if libvirt:
            found += process.inside_root(libvirt_service.root(self.state, node) / "run", "/run")
        return found

    def kill_node(self, node: int, *, libvirt: bool = False) -> None:
        """As if its power were cut; with `libvirt`, its VMs go, too. `start_node` starts it again."""
        doomed = self.node_processes(node, libvirt=libvirt)
        process.send(signal.SIGKILL, doomed)
        if left := process.wait_gone(doomed):
            raise EnvironmentFault(f"kill {node_name(node)}", f"processes {left} do not end")

    def freeze_node(self, node: int) -> None:
        """Stop its daemon, workers and builds where they are; its VMs run on. `thaw_node` lets them go on."""
        frozen: list[int] = []
        while new := [pid for pid in self.node_processes(node) if pid not in frozen]:
            process.send(signal.SIGSTOP, new)
            frozen += new

    def thaw_node(self, node: int) -> None:
        process.send(signal.SIGCONT, reversed(self.node_processes(node)))

    def start_node(self, node: int) -> None:
        """Start what does not run of a node, and wait until it serves."""
        with self.state.lock():
            for cls in OF_EACH_NODE:
                self._start(self._service(Part(cls, node)))

    # ---- the whole

    def down(self, *, purge: bool = False) -> None:
        """Power VMs off, stop everything, take away what is left; with `purge` the data, too. Safe to repeat.

        Raises EnvironmentFault naming what could not be removed; the data are kept then.
        """
        require_root()
        if not self.state.path.exists():
            return
        with self.state.lock():
            if self.state.exists:
                for part in reversed(self._parts()):
                    self._stop(self._service(part))
            if left := remove_leftovers(self.state):
                raise EnvironmentFault(f"stop stack {self.state.path}", "left: " + "; ".join(left.describe()))
            if purge:
                self.state.remove()

    def status(self) -> list[ServiceStatus]:
        if not self.state.exists:
            return []
        return [_status(self._service(part)) for part in self._wanted(())]

    def leftovers(self) -> list[str]:
        """What runs, is mounted or attached on behalf of this stack; nothing after `down`."""
        return list(find_leftovers(self.state).describe())

    def environment(self) -> dict[str, str]:
        """What a client of this stack needs; PATH leads to `pvc`."""
        self._require()
        api = Api(self.state)
        environment = {
            "PVC_STATE": str(self.state.path),
            "PVC_CONFIG": str(self.state.configuration),
            "PVC_API_URL": api.address(),
            "PYTHONPATH": python_path(CHECKOUT),
            "PATH": f"{CHECKOUT / 'dev/bin'}:{_path_without_own()}",
        }
        if self.state.token_file.exists():
            environment["PVC_API_KEY"] = self.state.token_file.read_text().strip()
        return environment

    def log(self, name: str) -> Path:
        """Raises NotFound for a service there is not."""
        found = select([name], self.state.nodes)
        self._require()
        return self.state.log(found[0].name)

    def _parts(self) -> list[Part]:
        return select((), self.state.nodes)

    def _wanted(self, only: Collection[str]) -> list[Part]:
        """The services named, in order; Ceph's are there only with a pool that needs them."""
        chosen = select(only, self.state.nodes)
        if self.state.pool_kind == "ceph":
            return chosen
        if only and any(part.cls in CEPH for part in chosen):
            hint = "dev/stack down --purge; dev/stack up --pool ceph"
            raise WrongState("start Ceph", "this stack's pool is a directory", hint)
        return [part for part in chosen if part.cls not in CEPH]

    def _start(self, service: Service) -> None:
        if not service.process:
            self._say(f"starting {service.name}")
        service.start()

    def _stop(self, service: Service) -> None:
        if service.process:
            self._say(f"stopping {service.name}")
        service.stop()

    def _service(self, part: Part) -> Service:
        return part.cls(self.state, part.node)

    def _remember(self, overrides: Mapping[str, Any]) -> None:
        document = self.state.settings()
        document["overrides"] = merged(document["overrides"], overrides)
        self.state.save_settings(document)

    def _require(self) -> None:
        if not self.state.exists:
            raise WrongState(f"use stack {self.state.path}", "there is none", "dev/stack up")


@contextmanager
def temporary_stack(
    *,
    only: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    pool: PoolKind = "directory",
    nodes: int = 1,
    say: Say = lambda line: None,
) -> Iterator[Stack]:
    """A stack of its own for a test, gone with all its data at the end.

    One whose test was killed is removed by the next.
    """
    require_root()
    remove_abandoned()  # the last one takes the directory above with it
    create_searchable(DEFAULT_ROOT)
    stack = Stack(Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=DEFAULT_ROOT)), say)
    Process.current().save(stack.state / OWNER)
    try:
        stack.up(only=only, settings=settings, pool=pool, nodes=nodes)
        yield stack
    finally:
        stack.down(purge=True)


def remove_abandoned() -> None:
    """Take away temporary stacks whose owners are dead."""
    for path in DEFAULT_ROOT.glob(f"{TEMPORARY}*"):
        owner = Process.load_or_none(path / OWNER)
        if owner and not owner.alive:
            Stack(path).down(purge=True)


def select(names: Collection[str], nodes: int = 1) -> list[Part]:
    """The services named, in the order of starting; all when none is named. Raises NotFound."""
    parts = [
        Part(cls, node) for cls in SERVICES for node in range(1, 1 + (nodes if cls in OF_EACH_NODE else 1))
    ]
    if unknown := set(names).difference(*(part.names for part in parts)):
        known = ", ".join(part.name for part in parts)
        raise NotFound(
            f"find service {', '.join(sorted(unknown))}", "there is none of that name", f"services: {known}"
        )
    return [part for part in parts if not names or not part.names.isdisjoint(names)]


def require_root() -> None:
    if os.geteuid() != 0:
        raise WrongInput(
            "start or stop a stack", "needs root: it mounts and runs services as other users", "use sudo"
        )


def _status(service: Service) -> ServiceStatus:
    running = service.process
    return ServiceStatus(
        service.name,
        running.pid if running else None,
        service.address(),
        str(service.state.log(service.name)),
    )


def _path_without_own() -> str:
    own = str(CHECKOUT / "dev/bin")
    return ":".join(part for part in os.environ.get("PATH", os.defpath).split(":") if part != own)


__all__ = ["CODE", "SERVICES", "ServiceStatus", "Stack", "temporary_stack"]
