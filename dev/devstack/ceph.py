"""A Ceph of one machine: monitor, manager and one OSD on a sparse file, on loopback and without systemd.

Nothing is kept twice, so this is for trying and testing only. cephx is on, as on a real cluster, and the node
daemon gets a user of its own (docs/storage.md) instead of client.admin.
"""

import json
import os
import pwd
import shutil
import signal
import time
import uuid
from pathlib import Path
from typing import Any

from devstack.service import Launch, Service
from devstack.state import State, write_private
from pvccommon.errors import EnvironmentFault, TimedOut
from pvccommon.run import run

USER = "ceph"
MON, MGR, OSD = "a", "x", "0"
POOL = "vms"
CLIENT, MANAGER = "pvc", "pvc-manager"
MANAGER_COMMANDS = (
    "osd pool create",
    "osd pool set",
    "osd pool application enable",
    "osd pool application set",
    "osd pool delete",
    "osd crush rule create-replicated",
)
MANAGER_CAPABILITIES = ", ".join(["allow r", *(f"allow command '{text}'" for text in MANAGER_COMMANDS)])
OSD_BYTES = 32 * 1024**3
PLACEMENT_GROUPS = 16
ADMIN = "client.admin"
# Every key is made before the monitor, which takes them all in with its first start.
CAPABILITIES: dict[str, dict[str, str]] = {
    "mon.": {"mon": "allow *"},
    ADMIN: {"mon": "allow *", "mgr": "allow *", "osd": "allow *"},
    f"mgr.{MGR}": {"mon": "allow profile mgr", "osd": "allow *"},
    f"osd.{OSD}": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
    # As docs/storage.md says: pools made through the API carry a mark that these capabilities name.
    f"client.{CLIENT}": {
        "mon": "profile rbd, allow command 'osd pool op unmanaged-snap'",
        "osd": f"profile rbd pool={POOL}, allow rwx tag rbd pvc=volumes",
    },
    f"client.{MANAGER}": {"mon": MANAGER_CAPABILITIES},
}
CONF = """\
[global]
fsid = {fsid}
mon host = {address}
mon initial members = {mon}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
# Ceph 16 never serves again what it could not renew its lease for in time, if no other OSD has a copy: ten
# minutes outlast any pause. Of an OSD that is started again the monitor is told that its former self is dead.
osd pool default read lease ratio = 30
osd crush chooseleaf type = 0
keyring = {directory}/ceph.$name.keyring

[client]
objecter timeout = 2
objecter tick interval = 1

[mon]
auth allow insecure global id reclaim = false
mon allow pool size one = true
mon allow pool delete = true
# A snapshot is made known by the monitor, which else collects changes for a second.
paxos propose interval = 0.05
paxos min wait = 0.01
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2

[mgr]
mgr initial modules =

[osd]
osd objectstore = bluestore
bluestore block size = {osd_bytes}
bluestore cache autotune = false
bluestore cache size = 67108864
osd crush update on start = true
osd recovery delay start = 0
{daemons}"""
DAEMON_CONF = """
[{name}]
{kind} data = {directory}/{name}
keyring = {directory}/{name}/keyring
run dir = {directory}/run
admin socket = {directory}/run/{name}.asok
crash dir = {directory}/crash
pid file =
log file =
log to stderr = true
err to stderr = true
mon cluster log file =
"""


def directory(state: State) -> Path:
    return state / "ceph"


def conf(state: State) -> Path:
    return directory(state) / "ceph.conf"


def keyring(state: State, entity: str = f"client.{CLIENT}") -> Path:
    return directory(state) / f"ceph.{entity}.keyring"


def ceph(state: State, *words: str, timeout_s: float = 60) -> Any:
    """What an administrator's command answers, as JSON; None when it answers nothing."""
    own = directory(state)
    options = ["--conf", str(conf(state)), "--name", ADMIN, "--keyring", str(own / f"ceph.{ADMIN}.keyring")]
    program = ["ceph", *options, "--connect-timeout", "5", "--format", "json"]
    answer = run([*program, *words], timeout_s=timeout_s).stdout.strip()
    return json.loads(answer) if answer else None


def set_quota(state: State, *, objects: int) -> None:
    """How many objects the pool may have; 0: as many as fit."""
    ceph(state, "osd", "pool", "set-quota", POOL, "max_objects", str(objects))


def wait_until_full(state: State, *, full: bool = True, timeout_s: float = 60) -> None:
    """Until the cluster has noticed that a quota is used up, or is not any more. Raises TimedOut."""
    deadline = time.monotonic() + timeout_s
    while _is_full(state) != full:
        if time.monotonic() > deadline:
            raise TimedOut(f"wait for pool {POOL} to be {'full' if full else 'usable'}", f"{timeout_s:g} s")
        time.sleep(0.2)


def _is_full(state: State) -> bool:
    pools = ceph(state, "osd", "pool", "ls", "detail")
    return any(pool["pool_name"] == POOL and "full" in pool["flags_names"].split(",") for pool in pools)


class CephDaemon(Service):
    """What the three have in common."""

    kind: str
    id: str
    ready_timeout_s = 60

    @property
    def directory(self) -> Path:
        return directory(self.state)

    @property
    def data(self) -> Path:
        return self.directory / f"{self.kind}.{self.id}"

    def launch(self) -> Launch:
        options = ["-f", "-i", self.id, "--conf", str(conf(self.state))]
        return Launch([f"/usr/bin/ceph-{self.kind}", *options], user=USER)

    def make_data(self) -> None:
        """The daemon's own directory, with its key."""
        self._mkdir(self.data)
        shutil.copy(keyring(self.state, self._entity), self.data / "keyring")
        self._give(self.data / "keyring")

    @property
    def _entity(self) -> str:
        return f"{self.kind}.{self.id}"

    def _mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        self._give(path)

    def _give(self, path: Path) -> None:
        account = pwd.getpwnam(USER)
        os.chown(path, account.pw_uid, account.pw_gid)

    def _as_ceph(self, *argv: str) -> None:
        run(["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", *argv], timeout_s=120)


class CephMon(CephDaemon):
    name = "ceph-mon"
    kind, id = "mon", MON

    def prepare(self) -> None:
        if shutil.which("ceph-mon", path="/usr/bin") is None:
            raise EnvironmentFault("find ceph-mon", "Ceph is not installed", "run dev/install")
        self.directory.mkdir(mode=0o711, exist_ok=True)
        for name in ("run", "crash"):
            self._mkdir(self.directory / name)
        self._write_conf()
        if (self.directory / "address").exists():
            self._move()
        else:
            self._make()

    def check_ready(self) -> None:
        ceph(self.state, "mon", "stat", timeout_s=15)

    def address(self) -> str:
        return f"127.0.0.1:{self.state.port('ceph-mon-v2')}"

    def _write_conf(self) -> None:
        """Ports may be others than the last time."""
        fsid = self.directory / "fsid"
        if not fsid.exists():
            fsid.write_text(f"{uuid.uuid4()}\n")
        names = {"mon": f"mon.{MON}", "mgr": f"mgr.{MGR}", "osd": f"osd.{OSD}"}
        daemons = "".join(
            DAEMON_CONF.format(kind=kind, name=name, directory=self.directory) for kind, name in names.items()
        )
        text = CONF.format(
            fsid=fsid.read_text().strip(),
            address=self._address(),
            mon=MON,
            directory=self.directory,
            osd_bytes=OSD_BYTES,
            daemons=daemons,
        )
        conf(self.state).write_text(text)

    def _address(self) -> str:
        v2, v1 = (self.state.port(f"ceph-mon-{version}") for version in ("v2", "v1"))
        return f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"

    def _make(self) -> None:
        """All keys, then the monitor that knows them."""
        shutil.rmtree(self.data, ignore_errors=True)
        everything = self.directory / "all.keyring"
        write_private(everything, "")
        for entity, capabilities in CAPABILITIES.items():
            path = str(everything if entity == "mon." else keyring(self.state, entity))
            allowed = [word for kind, text in capabilities.items() for word in ("--cap", kind, text)]
            create = () if entity == "mon." else ("--create-keyring",)
            run(["ceph-authtool", path, *create, "--gen-key", "--name", entity, *allowed], timeout_s=30)
            if entity != "mon.":
                run(["ceph-authtool", str(everything), "--import-keyring", path], timeout_s=30)
        self._give(everything)
        self._mkdir(self.data)
        self._as_ceph("ceph-mon", "--mkfs", *self._options(), *self._monmap(), "--keyring", str(everything))
        everything.unlink()
        (self.directory / "address").write_text(self._address())

    def _move(self) -> None:
        """The port was taken by somebody else meanwhile: a monitor listens where its map says."""
        if (self.directory / "address").read_text() == self._address():
            return
        path = self._monmap()[1]
        self._as_ceph("ceph-mon", *self._options(), "--inject-monmap", path)
        (self.directory / "address").write_text(self._address())

    def _options(self) -> list[str]:
        return ["-i", MON, "--conf", str(conf(self.state))]

    def _monmap(self) -> list[str]:
        path = self.directory / "monmap"
        fsid = (self.directory / "fsid").read_text().strip()
        create = ["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", MON, self._address()]
        run([*create, str(path)], timeout_s=30)
        self._give(path)
        return ["--monmap", str(path)]


class CephMgr(CephDaemon):
    name = "ceph-mgr"
    kind, id = "mgr", MGR

    def prepare(self) -> None:
        self.make_data()

    def check_ready(self) -> None:
        if not ceph(self.state, "mgr", "stat", timeout_s=15)["available"]:
            raise EnvironmentFault("ask ceph-mgr", "it is not active yet")

    def address(self) -> str:
        return f"mgr.{MGR}"


class CephOsd(CephDaemon):
    name = "ceph-osd"
    kind, id = "osd", OSD
    # It writes its caches; SIGTERM is an orderly end.
    stop_signal = signal.SIGTERM

    def prepare(self) -> None:
        if (self.data / "ready").exists():
            ceph(self.state, "osd", "down", OSD, "--definitely-dead")
            return
        shutil.rmtree(self.data, ignore_errors=True)
        self.make_data()
        own = self.directory / "osd.uuid"
        if not own.exists():
            own.write_text(f"{uuid.uuid4()}\n")
        identity = own.read_text().strip()
        ceph(self.state, "osd", "new", identity, OSD)
        options = ["--conf", str(conf(self.state)), "--osd-uuid", identity]
        self._as_ceph("ceph-osd", "--mkfs", "-i", OSD, *options)

    def check_ready(self) -> None:
        if ceph(self.state, "osd", "stat", timeout_s=15)["num_up_osds"] < 1:
            raise EnvironmentFault("ask ceph-osd", "it is not up yet")

    def after_start(self) -> None:
        """The pool, initialised for RBD."""
        if POOL not in ceph(self.state, "osd", "pool", "ls"):
            ceph(self.state, "osd", "pool", "create", POOL, str(PLACEMENT_GROUPS))
            ceph(self.state, "osd", "pool", "application", "enable", POOL, "rbd")
        self._wait_for_space()

    def _wait_for_space(self) -> None:
        """Until the manager has counted: before, the pool is unknown or looks full."""
        deadline = time.monotonic() + self.ready_timeout_s
        while not any(
            pool["name"] == POOL and pool["stats"]["max_avail"] > 0
            for pool in ceph(self.state, "df")["pools"]
        ):
            if time.monotonic() > deadline:
                raise EnvironmentFault("start ceph-osd", f"the manager does not count pool {POOL}")
            time.sleep(0.2)

    def address(self) -> str:
        return f"osd.{OSD}"
