"""The state directory: everything a stack writes is under it, and one lock guards it."""

import fcntl
import hashlib
import json
import os
import random
import secrets
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pvccommon.errors import Busy, EnvironmentFault, WrongInput, WrongState

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_ROOT = Path("/var/lib/pvc-dev")
# libvirtd sees the stack's own directories at these places, so the state cannot live inside one of them.
COVERED = ("/run", "/var/run", "/var/lib/libvirt", "/etc/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
# A path to a socket has at most 107 bytes (unix(7)); the longest of ours below the state directory has 34.
LONGEST_PATH = 70
PORTED = ("postgresql", "redis", "api", "ceph-mon-v2", "ceph-mon-v1")
PoolKind = Literal["directory", "ceph"]
MOST_NODES = 9
LOCK_TIMEOUT_S = 300


def default_path() -> Path:
    """Where the stack of this checkout lives: $PVC_STATE, else a directory below /var/lib/pvc-dev."""
    if chosen := os.environ.get("PVC_STATE"):
        return Path(chosen)
    return DEFAULT_ROOT / hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:12]


def numbered(name: str, node: int) -> str:
    """What is called `name` of the first node, of this one: `node`, `node2`, …"""
    return name if node == 1 else f"{name}{node}"


@dataclass(frozen=True)
class State:
    """Paths below one state directory, and the settings that outlive a restart (ports, overrides)."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self / "stack.json").exists()

    @property
    def configuration(self) -> Path:
        """The first node's, which commands use, too."""
        return self.node_configuration(1)

    def node_configuration(self, node: int) -> Path:
        return self / f"{numbered('pvc', node)}.conf"

    @property
    def token_file(self) -> Path:
        return self / "admin.token"

    def log(self, service: str) -> Path:
        return self / "log" / f"{service}.log"

    def record(self, service: str) -> Path:
        return self / "processes" / f"{service}.json"

    @property
    def pool_kind(self) -> PoolKind:
        """What stands behind the pool `vms`: chosen with the first `up`."""
        return "ceph" if self.settings().get("pool") == "ceph" else "directory"

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return int(self.settings().get("nodes", 1)) if self.exists else 1

    def create(self, pool: PoolKind | None = None, nodes: int | None = None) -> None:
        """Make the settings and directories; keeps what is there. Needs the lock.

        Raises WrongState when the stack has another kind of pool already, or more nodes.
        """
        self.path.chmod(0o711)
        for name in ("log", "processes"):
            (self / name).mkdir(mode=0o700, exist_ok=True)
        if not self.exists:
            self.save_settings(
                {"ports": {}, "overrides": {}, "host_uuid": str(uuid.uuid4()), "pool": pool or "directory"}
            )
        if pool and pool != self.pool_kind:
            why = f"its pool is of kind {self.pool_kind}, and VMs may lie there"
            raise WrongState(f"use stack {self.path} with pool {pool}", why, "dev/stack down --purge")
        if nodes and nodes < self.nodes:
            why = f"it has {self.nodes} nodes, and VMs may be on them"
            raise WrongState(f"use stack {self.path} with {nodes} nodes", why, "dev/stack down --purge")
        if nodes and nodes > self.nodes:
            self.save_settings({**self.settings(), "nodes": nodes})

    def settings(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self / "stack.json").read_text())
        return document

    def save_settings(self, document: dict[str, Any]) -> None:
        draft = self / "stack.json.new"
        draft.write_text(json.dumps(document, indent=2))
        draft.rename(self / "stack.json")

    def port(self, service: str) -> int:
        return int(self.settings()["ports"][service])

    def choose_ports(self, *, running: bool) -> None:
        """Give every service a port once; while nothing runs, one taken by somebody else is replaced."""
        settings = self.settings()
        ports: dict[str, int] = settings["ports"]
        for service in PORTED:
            if service not in ports or (not running and not port_is_free(ports[service])):
                ports[service] = free_port(avoid=set(ports.values()))
        self.save_settings(settings)

    def secret(self, name: str) -> str:
        """A password of this stack, made on first use and readable by root only."""
        path = self / f"{name}.password"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(24) + "\n")
        return path.read_text().strip()

    def remove(self) -> None:
        shutil.rmtree(self.path)
        if self.path.parent == DEFAULT_ROOT and not any(DEFAULT_ROOT.iterdir()):
            DEFAULT_ROOT.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one `up` or `down` at a time; makes the directory.

        Raises WrongInput for an unfit place, before anything is made, and Busy when the other takes minutes.
        """
        check_place(self.path)
        check_searchable(self.path)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not (held := self._try_lock()):
            if time.monotonic() > deadline:
                raise Busy(f"use stack {self.path}", "another command works on it", "wait for it to end")
            time.sleep(0.1)
        # Other users pass through most of what is made; what they must not read gets its mode explicitly.
        umask = os.umask(0o022)
        try:
            yield
        finally:
            os.umask(umask)
            held.close()

    def _try_lock(self) -> Any:
        """The lock file, locked; None while somebody else has it, or has just removed it."""
        create_searchable(self.path)
        file = open(self / "lock", "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == (self / "lock").stat().st_ino:
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        return None


def check_place(path: Path) -> None:
    what = f"use state directory {path}"
    if not path.is_absolute() or path != path.resolve():
        raise WrongInput(
            what, "it must be an absolute path without symbolic links", f"--state {path.resolve()}"
        )
    if any(path.is_relative_to(covered) for covered in COVERED):
        raise WrongInput(
            what, "libvirtd of the stack sees other directories there", "use one below /var/lib or /srv"
        )
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise WrongInput(
            what, f"longer than {LONGEST_PATH} bytes, too long for sockets", "choose a shorter --state"
        )


def check_searchable(path: Path) -> None:
    """QEMU, PostgreSQL and the API run as other users, who must get through to their own files."""
    for directory in path.parents:
        if directory.exists() and not directory.stat().st_mode & 0o001:
            hint = f"chmod o+x {directory}, or choose another --state"
            raise WrongInput(
                f"use state directory {path}", f"other users cannot pass through {directory}", hint
            )


def create_searchable(path: Path) -> None:
    """Make a directory and its parents, passable for others whatever the umask says."""
    for directory in [*reversed(path.parents), path]:
        if not directory.exists():
            directory.mkdir(exist_ok=True)
            directory.chmod(0o711)


def write_private(path: Path, text: str, owner: tuple[int, int] = (0, 0)) -> None:
    """Write a file that only its owner can read, never readable by others in between."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        os.fchown(file.fileno(), *owner)
        file.write(text)
    draft.rename(path)


def free_port(avoid: set[int]) -> int:
    """A loopback port nobody listens on, below the range the kernel gives to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 200):
        if port not in avoid and port_is_free(port):
            return port
    raise EnvironmentFault("find a free port", "200 ports between 20000 and 32000 are all taken")


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
