"""The connection to a Ceph cluster: one for each process and user, with a deadline on every call.

python3-rados and python3-rbd are imported when a pool is first used: a node without Ceph need not have them.
"""

import base64
import binascii
import errno
import json
import os
import re
import stat
import threading
import uuid
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvccommon.errors import (
    Busy,
    EnvironmentFault,
    Exists,
    NoSpace,
    NotFound,
    PvcError,
    WrongInput,
    WrongState,
)
from pvccommon.storage.faults import FREE_SPACE, FULL, in_use
from pvccommon.storage.pool import PoolSecret, PoolSpace, PoolStatistics

CONNECT_TIMEOUT_S = 10
MONITOR_TIMEOUT_S = 10
OPERATION_TIMEOUT_S = 20
# Deadlines: librados waits for ever otherwise. Messages of the libraries go to nobody's terminal.
# When an OSD has not answered for 2 seconds (not 10 to 15) the objecter asks where it is: a restarted one has
# another address.
SETTINGS = {
    "objecter_timeout": "2",
    "objecter_tick_interval": "1",
    "client_mount_timeout": str(CONNECT_TIMEOUT_S),
    "rados_mon_op_timeout": str(MONITOR_TIMEOUT_S),
    "rados_osd_op_timeout": str(OPERATION_TIMEOUT_S),
    "log_to_stderr": "false",
    "err_to_stderr": "false",
}
BLOCKLIST_S = 3600
ERRNO_PREFIX = re.compile(r"^\[errno \d+\] ")
# Names of libvirt secrets are derived from cluster and user, so that all nodes use the same.
SECRET_NAMESPACE = uuid.UUID("6c2d7c0b-4a3f-4d0e-9a51-0d3f3a4f7c11")


@dataclass(frozen=True)
class CephAccount:
    """How a cluster is reached; None for the keyring leaves that to the configuration file."""

    user: str
    conf: str
    keyring: str | None = None

    @property
    def entity(self) -> str:
        return f"client.{self.user}"


class CephCluster:
    """One connection. Its methods raise errors of ours; calls of the libraries belong in `ceph_errors`."""

    def __init__(self, account: CephAccount, rados: Any) -> None:
        self.account = account
        self.rados = rados
        self.client_id = int(rados.get_instance_id())
        # What this process has open itself, by image id: "r" or "w" for each user. Watchers do not tell that.
        self.held: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        self._clone_lock = threading.Lock()
        self._pools: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """How the cluster knows this client."""
        return str(self.rados.get_addrs())

    def pool(self, name: str) -> Any:
        """The rados.Ioctx of a pool; raises EnvironmentFault when there is none."""
        with self.lock:
            if name not in self._pools:
                try:
                    self._pools[name] = self.rados.open_ioctx(name)
                except Exception as exc:
                    if _errno(exc) != errno.ENOENT:
                        raise ceph_fault(f"open Ceph pool {name}", exc) from exc
                    why, hint = "the cluster has no such pool", f"ceph osd pool create {name}"
                    raise EnvironmentFault(f"open Ceph pool {name}", why, hint) from exc
                # A full pool refuses at once, and lets things be deleted; else every change waits for space.
                self._pools[name].set_osdmap_full_try()
            return self._pools[name]

    def space(self, pool: str) -> PoolSpace:
        """What the pool's replication (and its quota) leaves of the cluster."""
        return _space(self._usage(pool)["stats"])

    def statistics(self, pool: str) -> PoolStatistics:
        """What the cluster counts for a pool."""
        what = f"measure Ceph pool {pool}"
        usage = self._usage(pool)
        detail = self.ask(what, {"prefix": "osd pool ls", "detail": "detail"})
        layout: dict[str, Any] = next((found for found in detail if found["pool_name"] == pool), {})
        rules = self.ask(what, {"prefix": "osd crush rule dump"})
        with ceph_errors(what):
            counted = self.pool(pool).get_stats()
        stats = usage["stats"]
        keys = ("num_objects", "num_object_clones", "num_object_copies", "num_objects_degraded")
        return PoolStatistics(
            stored_bytes=int(stats["stored"]),
            used_bytes=int(stats["bytes_used"]),
            free_bytes=_space(stats).free_bytes,
            used_percent=round(float(stats["percent_used"]), 6),
            tier=_tier(rules, layout.get("crush_rule")),
            pgs=int(layout.get("pg_num_target", layout.get("pg_num", 0))),
            id=int(usage["id"]),
            read_bytes=int(stats["rd_bytes"]),
            write_bytes=int(stats["wr_bytes"]),
            read_ops=int(stats["rd"]),
            write_ops=int(stats["wr"]),
            **{key: int(counted[key]) for key in keys},
        )

    def _usage(self, pool: str) -> Any:
        answer = self.ask(f"measure Ceph pool {pool}", {"prefix": "df", "detail": "detail"})
        for found in answer["pools"]:
            if found["name"] == pool:
                return found
        why = "the cluster does not list it (yet)"
        raise EnvironmentFault(f"measure Ceph pool {pool}", why, "a new pool is known after some seconds")

    def monitors(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of the monitors, with the older protocol, which every client speaks."""
        monitors = self.ask("list Ceph monitors", {"prefix": "mon dump"})["mons"]
        return tuple(_address(monitor["public_addrs"]["addrvec"]) for monitor in monitors)

    def ask(self, what: str, command: Mapping[str, Any]) -> Any:
        """A command to the monitors, answered in JSON."""
        return json.loads(self._command(what, command))

    def order(self, what: str, command: Mapping[str, Any]) -> None:
        """A command to the monitors that changes something. Raises WrongInput for what they do not take."""
        self._command(what, command)

    def _command(self, what: str, command: Mapping[str, Any]) -> bytes:
        with ceph_errors(what):
            code, answer, message = self.rados.mon_command(json.dumps({**command, "format": "json"}), b"")
        if -code in (errno.EINVAL, errno.ERANGE):
            raise WrongInput(what, f"the cluster refuses it: {message}")
        if code != 0:
            raise _fault(what, -code, message or os.strerror(-code))
        return bytes(answer)

    def fence(self, address: str) -> None:
        """Have the cluster refuse a client from now on; nothing it has sent before arrives afterwards."""
        with ceph_errors(f"fence Ceph client {address}"):
            self.rados.blocklist_add(address, BLOCKLIST_S)

    @contextmanager
    def clone_format(self, version: int) -> Iterator[None]:
        """Clones made inside are of this version.

        Of version 1, the cluster itself refuses to unprotect a snapshot that has clones; of version 2, the
        source need not be protected and can be removed before the clone. Python's binding has no parameter.
        """
        with self._clone_lock:
            self.rados.conf_set("rbd_default_clone_format", str(version))
            yield

    def secret(self) -> PoolSecret:
        """What libvirt needs for QEMU to log in as the same user."""
        name = uuid.uuid5(SECRET_NAMESPACE, f"{self.rados.get_fsid()}/{self.account.entity}")
        key = read_key(self._keyring(), self.account.entity)
        return PoolSecret(str(name), f"{self.account.entity} {self.rados.get_fsid()}", key)

    def _keyring(self) -> Path:
        configured = str(self.rados.conf_get("keyring")).replace(" ", "").split(",")
        paths = [Path(path) for path in configured if path]
        return next((path for path in paths if path.exists()), paths[0])


_connections: dict[tuple[int, CephAccount], CephCluster] = {}
_connecting = threading.Lock()


def connect(account: CephAccount) -> CephCluster:
    """This process's connection; made when first needed, and again after the cluster has fenced it.

    A child of fork has no use for its parent's: librados has threads.
    """
    with _connecting:
        key = (os.getpid(), account)
        if key not in _connections:
            _connections[key] = CephCluster(account, _connect(account))
        return _connections[key]


def disconnect(account: CephAccount) -> None:
    """Forget the connection; the next use makes another. What is still open on it keeps it alive."""
    with _connecting:
        _connections.pop((os.getpid(), account), None)


def _connect(account: CephAccount) -> Any:
    what = f"connect to Ceph as {account.entity}"
    try:
        import rados
    except ImportError as exc:
        raise EnvironmentFault(
            what, "python3-rados is missing", "apt install python3-rados python3-rbd"
        ) from exc
    if not os.access(account.conf, os.R_OK):
        raise EnvironmentFault(what, f"{account.conf} cannot be read", "see docs/storage.md")
    settings = dict(SETTINGS)
    if account.keyring:
        settings["keyring"] = account.keyring
    try:
        connection = rados.Rados(conffile=account.conf, rados_id=account.user, conf=settings)
        connection.connect()
    except Exception as exc:
        code = _errno(exc)
        if code is None:
            raise
        if code == errno.ETIMEDOUT:
            raise _no_answer(what, CONNECT_TIMEOUT_S) from exc
        hint = f"check the keyring and capabilities of {account.entity} (docs/storage.md)"
        raise EnvironmentFault(what, _reason(exc), hint) from exc
    return connection


def read_key(path: Path, entity: str) -> bytes:
    """An account's key from its keyring, decoded. Raises EnvironmentFault when others can read the file."""
    what = f"read the key of {entity}"
    try:
        with path.open() as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except OSError as exc:
        raise EnvironmentFault(what, f"{path}: {exc.strerror}") from exc
    if mode & 0o007:
        raise EnvironmentFault(what, f"others can read {path} (mode {mode:04o})", f"chmod o= {path}")
    parser = ConfigParser(interpolation=None)
    try:
        parser.read_string("\n".join(line.strip() for line in text.splitlines()))
        return base64.b64decode(parser[entity]["key"], validate=True)
    except (ConfigError, KeyError, binascii.Error):
        # Not `from exc`: what could not be read may be part of a key.
        raise EnvironmentFault(what, f"{path} has no key for it") from None


@contextmanager
def ceph_errors(what: str) -> Iterator[None]:
    """Turn an error of librados or librbd inside into the fitting one of ours, saying what was tried."""
    try:
        yield
    except Exception as exc:
        if isinstance(exc, PvcError) or _errno(exc) is None:
            raise
        raise ceph_fault(what, exc) from exc


def is_missing(exc: Exception) -> bool:
    """Whether a library says that there is no such image, snapshot or object."""
    return _errno(exc) == errno.ENOENT


def is_full(exc: Exception) -> bool:
    """Whether a library says that there is no space, or a quota is used up."""
    return _errno(exc) in FULL


def is_busy(exc: Exception) -> bool:
    """Whether a library says that somebody else has it."""
    return _errno(exc) == errno.EBUSY


def ceph_fault(what: str, exc: Exception) -> PvcError:
    """The error for one of the libraries'."""
    return _fault(what, _errno(exc) or 0, _reason(exc))


def _fault(what: str, code: int, why: str) -> PvcError:
    if code in FULL:
        return NoSpace(what, why, FREE_SPACE)
    if code == errno.ETIMEDOUT:
        return _no_answer(what, OPERATION_TIMEOUT_S)
    if code == errno.EBUSY:
        return in_use(what)
    if code == errno.ENOENT:
        return NotFound(what, "it is not there (any more)")
    if code == errno.EEXIST:
        return Exists(what, "there is one of this name", "choose another name")
    if code == errno.ENOTEMPTY:
        return WrongState(what, "it has snapshots")
    if code == errno.EAGAIN:
        return Busy(what, why, "try again")
    if code == errno.ESHUTDOWN:
        return EnvironmentFault(what, "the cluster has fenced this client", "try again: it connects anew")
    if code in (errno.EPERM, errno.EACCES):
        return EnvironmentFault(what, why, "check the capabilities of the Ceph user (docs/storage.md)")
    return EnvironmentFault(what, why)


def _no_answer(what: str, seconds: int) -> EnvironmentFault:
    return EnvironmentFault(
        what, f"the Ceph cluster does not answer (waited {seconds} s)", "see: ceph -s; ceph osd tree"
    )


def _errno(exc: Exception) -> int | None:
    """The error number of an error of the libraries, which need not be imported for that; else None."""
    if type(exc).__module__ not in ("rados", "rbd"):
        return None
    return abs(int(getattr(exc, "errno", 0) or 0))


def _reason(exc: Exception) -> str:
    return ERRNO_PREFIX.sub("", str(exc)).strip() or type(exc).__name__


def _space(stats: Mapping[str, int]) -> PoolSpace:
    used, free = int(stats["stored"]), int(stats["max_avail"])
    if quota := int(stats.get("quota_bytes", 0)):
        free = min(free, max(0, quota - used))
    if 0 < int(stats.get("quota_objects", 0)) <= int(stats.get("objects", 0)):
        free = 0
    return PoolSpace(used + free, used, free)


def _tier(rules: list[dict[str, Any]], rule_id: int | None) -> str:
    """The class of disks a rule takes: crushmap, "take default~ssd"."""
    steps: list[dict[str, Any]] = next((rule["steps"] for rule in rules if rule["rule_id"] == rule_id), [])
    taken = next((str(step["item_name"]) for step in steps if step["op"] == "take"), "")
    return taken.partition("~")[2] or "default"


def _address(addresses: list[Mapping[str, Any]]) -> tuple[str, int]:
    by_type = {str(found["type"]): str(found["addr"]) for found in addresses}
    host, _, port = (by_type.get("v1") or by_type["v2"]).rpartition(":")
    return host.strip("[]"), int(port)
