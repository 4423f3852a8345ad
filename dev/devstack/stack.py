"""The stack as a whole: its services in order, up and down."""

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack.api import Api
from devstack.ceph import CephMgr, CephMon, CephOsd
from devstack.configuration import merged, write_configuration
from devstack.daemon import CODE, python_path
from devstack.leftovers import find_leftovers, remove_leftovers
from devstack.libvirt import Libvirtd, Virtlogd
from devstack.node import Node
from devstack.postgresql import Postgresql
from devstack.process import Process
from devstack.redis import Redis
from devstack.service import Service
from devstack.state import CHECKOUT, DEFAULT_ROOT, PoolKind, State, create_searchable, default_path
from pvccommon.errors import EnvironmentFault, NotFound, WrongInput, WrongState

# In the order of starting; stopped the other way round.
CEPH: tuple[type[Service], ...] = (CephMon, CephMgr, CephOsd)
SERVICES: tuple[type[Service], ...] = (Postgresql, Redis, *CEPH, Virtlogd, Libvirtd, Api, Node)
GROUPS = {"libvirt": ("virtlogd", "libvirtd"), "ceph": tuple(cls.name for cls in CEPH)}
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
    ) -> None:
        """Start what does not run, and wait until all of it serves. Safe to repeat.

        `only` names services (`libvirt` for its two, `ceph` for its three); `settings` is remembered for the
        next time, and so is the kind of pool, `directory` unless the first `up` says otherwise.
        """
        require_root()
        select(only)
        with self.state.lock():
            self.state.create(pool)
            self.state.choose_ports(running=any(self._service(cls).process for cls in SERVICES))
            self._remember(settings or {})
            write_configuration(self.state)
            for cls in self._wanted(only):
                self._start(self._service(cls))

    def restart(self, only: Collection[str] = ("api", "node")) -> None:
        """Stop and start services: new code, new configuration."""
        require_root()
        select(only)
        with self.state.lock():
            self._require()
            write_configuration(self.state)
            wanted = self._wanted(only)
            for cls in reversed(wanted):
                self._stop(self._service(cls))
            for cls in wanted:
                self._start(self._service(cls))

    def down(self, *, purge: bool = False) -> None:
        """Power VMs off, stop everything, take away what is left; with `purge` the data, too. Safe to repeat.

        Raises EnvironmentFault naming what could not be removed; the data are kept then.
        """
        require_root()
        if not self.state.path.exists():
            return
        with self.state.lock():
            if self.state.exists:
                for cls in reversed(SERVICES):
                    self._stop(self._service(cls))
            if left := remove_leftovers(self.state):
                raise EnvironmentFault(f"stop stack {self.state.path}", "left: " + "; ".join(left.describe()))
            if purge:
                self.state.remove()

    def status(self) -> list[ServiceStatus]:
        if not self.state.exists:
            return []
        return [_status(self._service(cls)) for cls in self._wanted(())]

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
        select([name])
        self._require()
        return self.state.log(name)

    def _wanted(self, only: Collection[str]) -> list[type[Service]]:
        """The services named, in order; Ceph's are there only with a pool that needs them."""
        chosen = select(only)
        if self.state.pool_kind == "ceph":
            return chosen
        if only and any(cls in CEPH for cls in chosen):
            hint = "dev/stack down --purge; dev/stack up --pool ceph"
            raise WrongState("start Ceph", "this stack's pool is a directory", hint)
        return [cls for cls in chosen if cls not in CEPH]

    def _start(self, service: Service) -> None:
        if not service.process:
            self._say(f"starting {service.name}")
        service.start()

    def _stop(self, service: Service) -> None:
        if service.process:
            self._say(f"stopping {service.name}")
        service.stop()

    def _service(self, cls: type[Service]) -> Service:
        return cls(self.state)

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
        stack.up(only=only, settings=settings, pool=pool)
        yield stack
    finally:
        stack.down(purge=True)


def remove_abandoned() -> None:
    """Take away temporary stacks whose owners are dead."""
    for path in DEFAULT_ROOT.glob(f"{TEMPORARY}*"):
        owner = Process.load_or_none(path / OWNER)
        if owner and not owner.alive:
            Stack(path).down(purge=True)


def select(names: Collection[str]) -> list[type[Service]]:
    """The services named, in the order of starting; all when none is named. Raises NotFound."""
    wanted = {service for name in names for service in GROUPS.get(name, (name,))}
    if unknown := wanted - {cls.name for cls in SERVICES}:
        known = ", ".join(cls.name for cls in SERVICES)
        raise NotFound(
            f"find service {', '.join(sorted(unknown))}", "there is none of that name", f"services: {known}"
        )
    return [cls for cls in SERVICES if not wanted or cls.name in wanted]


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
