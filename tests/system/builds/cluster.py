"""A running stack as the tests use it: requests to its API, and what the machine holds on its behalf."""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import requests
from requests.adapters import HTTPAdapter
from sqlalchemy import select

from devstack import Stack, ceph
from devstack import libvirt as stack_libvirt
from pvccommon import names
from pvccommon.config import load_config
from pvccommon.database import Database
from pvccommon.models import (
    PENDING,
    Build,
    Image,
    ImageKind,
    ImageState,
    ImageVolume,
    Profile,
    Resource,
    Vm,
    one_of,
)
from pvccommon.storage import StoragePool, pools_from_config
from pvccommon.storage.ceph import CephAccount, connect
from pvcnoded.hypervisor import Hypervisor

NOOP = Path(__file__).parents[3] / "provisioner-scripts" / "builders" / "noop.py"
# Programs a build starts; they may run only while a build does.
HELPERS = ("pvcnoded.build ", "pvcnoded.sandbox", "qemu-storage-daemon", "slirp4netns", "bwrap")
# This stack's sandboxes have ids of their own, by which their processes are known; another run has others.
FIRST_UID = 700_000_000 + os.getpid() % 200 * 256 * 65_536
LAST_UID = FIRST_UID + 256 * 65_536 - 1  # the next one is another run's
# Objects that hold the directory of a Ceph pool; they come with its first image and stay.
CEPH_FRAME = {"rbd_directory", "rbd_info", "rbd_children", "rbd_trash"}
FINAL = ("succeeded", "failed", "cancelled")
# What tests change of the configuration: short times, user ids of their own, images from servers of tests.
SETTINGS = {
    "node": {"heartbeat_s": 1},
    "sandbox": {"first_uid": FIRST_UID},
    "images": {"fetch_from": ["127.0.0.0/8"]},
    "builds": {
        "log_limit_bytes": 200_000,
        "stage_timeout_s": {"setup": 5, "create": 5, "prepare": 60, "cleanup": 30},
    },
}


class Cluster:
    """The API of a stack, as an administrator."""

    def __init__(self, stack: Stack) -> None:
        environment = stack.environment()
        self.stack = stack
        self.url = environment["PVC_API_URL"] + "/api/v1"
        self.environment = environment
        self.config = load_config(environment["PVC_CONFIG"])
        self.database = Database(self.config.database)
        self._hypervisor = Hypervisor(self.config.hypervisor.libvirt_uri, "/nonexistent")
        self._http = requests.Session()
        self._http.mount("http://", HTTPAdapter(pool_maxsize=32))
        self._http.trust_env = False
        self._http.headers["X-Api-Key"] = environment["PVC_API_KEY"]

    def close(self) -> None:
        self.hang_up()
        self.database.close()

    def hang_up(self) -> None:
        """Close idle connections, which the API would close after some seconds."""
        self._http.close()

    def request(self, method: str, path: str, **data: Any) -> requests.Response:
        arguments: dict[str, Any] = {"params": data} if method == "GET" else {"data": data}
        return self._http.request(method, self.url + path, timeout=120, **arguments)

    def upload(self, path: str, body: Any, **query: Any) -> requests.Response:
        """`body`: see `pvc.multipart.FileBody`."""
        headers = {"Content-Type": body.content_type}
        return self._http.post(self.url + path, params=query, data=body, headers=headers, timeout=120)

    def get(self, path: str, **data: Any) -> Any:
        answer = self.request("GET", path, **data)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def change(self, method: str, path: str, **data: Any) -> Any:
        answer = self.request(method, path, **data)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    def make_profile(
        self,
        name: str,
        script: str,
        *,
        disks: dict[str, dict[str, Any]] | None = None,
        memory_mib: int = 768,
        **parts: Any,
    ) -> None:
        """A profile with a script of its own; templates are shared by all. Replaces an earlier script.

        `parts`: what else the profile has (image, userdata, arg).
        """
        if self.request("GET", f"/provisioner/script/{name}").status_code == 200:
            self.change("PUT", f"/provisioner/script/{name}", data=script)
        else:
            self.change("POST", "/provisioner/script", name=name, data=script)
        wanted = disks or {"sda": {"disk_size": 1}}
        storage = "disks-" + hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]
        system = f"memory-{memory_mib}"
        self.ensure("/provisioner/template/system", system, vcpus=1, vram=memory_mib, serial=True, vnc=False)
        self.ensure("/provisioner/template/network", "net")
        if self.ensure("/provisioner/template/storage", storage):
            for disk, values in wanted.items():
                self.change(
                    "POST", f"/provisioner/template/storage/{storage}/disk/{disk}", pool="vms", **values
                )
        is_new = self.ensure(
            "/provisioner/profile",
            name,
            profile_type="provisioner",
            system_template=system,
            network_template="net",
            storage_template=storage,
            script=name,
            **parts,
        )
        if parts and not is_new:
            self.change("PUT", f"/provisioner/profile/{name}", **parts)

    def make_image(self, name: str, kind: ImageKind, disks: Mapping[str, Path]) -> None:
        """An image as an upload leaves it, of files of raw content by disk id (of an ISO: "iso")."""
        pool = self.pool
        node = None if pool.shared else self.config.node.name
        with self.database.session() as session:
            image = Image(name=name, kind=kind.value, pool=pool.name, node=node, format="raw")
            session.add(image)
            session.flush()
            for position, (disk_id, file) in enumerate(disks.items()):
                volume = names.image_volume_name(image.id, disk_id)
                _import_disk(pool, volume, file, cloneable=kind is not ImageKind.ISO)
                size = pool.stat_volume(volume).size_bytes
                values = {"position": position, "disk_id": disk_id, "volume": volume, "size_bytes": size}
                image.volumes.append(ImageVolume(pool=pool.name, **values))
            image.size_bytes = sum(volume.size_bytes for volume in image.volumes)
            image.state = ImageState.READY.value

    def remove_image(self, name: str) -> None:
        """The image with its volumes; profiles that have it lose it. Fails while there are clones."""
        with self.database.session() as session:
            image = session.execute(select(Image).where(Image.name == name)).scalar_one()
            for profile in session.execute(select(Profile).where(Profile.image == image)).scalars():
                profile.image = None
            for volume in image.volumes:
                if image.kind != ImageKind.ISO:
                    self.pool.unprotect_snapshot(volume.volume, names.IMAGE_SNAPSHOT)
                self.pool.delete_volume(volume.volume)
            session.delete(image)

    def ensure(self, path: str, name: str, **values: Any) -> bool:
        found = self.request("GET", path, limit=f"^{name}$")
        if found.status_code == 200 and found.json():
            return False
        self.change("POST", path, name=name, **values)
        return True

    def create(self, vm: str, profile: str, **values: Any) -> str:
        """Start a build; returns the task's id."""
        return str(self.change("POST", "/provisioner/create", name=vm, profile=profile, **values)["task_id"])

    def wait(self, task: str, timeout_s: float = 120) -> dict[str, Any]:
        """The task when it has ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            state: dict[str, Any] = self.get(f"/tasks/{task}")
            if state["build_state"] in FINAL:
                return state
            assert time.monotonic() < deadline, f"not done after {timeout_s} s: {state}\n{self.log(task)}"
            time.sleep(0.1)

    def wait_for_stage(self, task: str, stage: str, marker: str, timeout_s: float = 60) -> None:
        """Until the script has said something in a stage."""
        deadline = time.monotonic() + timeout_s
        while f"{stage} info {marker}" not in (log := self.log(task)):
            assert time.monotonic() < deadline, f"{marker!r} was not said in {stage}:\n{log}"
            time.sleep(0.1)

    def log(self, task: str) -> str:
        """The build's log, a line an event: "stage level message"."""
        events = self.get(f"/tasks/{task}/log", lines=10_000)["events"]
        return "\n".join(f"{event['stage']} {event['level']} {event['message']}" for event in events)

    def build(self, vm: str, profile: str, **values: Any) -> dict[str, Any]:
        return self.wait(self.create(vm, profile, **values))

    def domains(self) -> dict[str, str]:
        """Every domain libvirt knows, with its definition."""
        connection = libvirt.open(stack_libvirt.uri(self.stack.state))
        try:
            return {domain.name(): domain.XMLDesc() for domain in connection.listAllDomains()}
        finally:
            connection.close()

    def processor_s(self, name: str) -> float:
        """Seconds of processor time that a running domain has had."""
        connection = libvirt.open(stack_libvirt.uri(self.stack.state))
        try:
            return float(connection.lookupByName(name).info()[4]) / 1e9
        finally:
            connection.close()

    def domain_state(self, name: str) -> str:
        """As libvirt sees it: `running`, `shutoff`, `missing`, …"""
        return self._hypervisor.state(name)

    def worker_pid(self, kind: str = "builds") -> int:
        """The Celery worker of the node."""
        return self.find_process(f"pvcnoded.worker {kind}")

    def build_pid(self, task: str) -> int:
        """The process that runs a build."""
        return self.find_process(f"pvcnoded.build {task}")

    def find_process(self, words: str) -> int:
        """A process of this stack by its command line."""
        return next(pid for pid, line in processes().items() if words in line and self.is_ours(pid))

    def is_ours(self, pid: int) -> bool:
        """Whether a process was started by this stack's daemons, or runs in one of its sandboxes."""
        try:
            uid = Path(f"/proc/{pid}").stat().st_uid
            words = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return FIRST_UID <= uid <= LAST_UID or str(self.stack.state.path) in words.decode(errors="replace")

    def helpers(self) -> set[str]:
        """Processes that may live only while a build does."""
        found = set()
        for pid, line in processes().items():
            if self.is_ours(pid) and any(word in line for word in HELPERS):
                found.add(f"{pid}: {line}")
        return found

    def footprint(self) -> "Footprint":
        """What there is now of everything a build can leave."""
        state = self.stack.state
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return Footprint(
            mounts=frozenset(line.split()[4] for line in mounts),
            loop_devices=frozenset(line for line in loop_devices() if str(state.path) in line),
            processes=frozenset(self.helpers()),
            volumes=frozenset(self._volumes()),
            domains=frozenset(self.domains()),
            consoles=frozenset(path.name for path in (state / "console").glob("*")),
            directories=frozenset(
                path for path in map(str, (state / "node").rglob("*")) if "slot" not in path
            ),
            temporary=frozenset(name for name in os.listdir("/tmp") if "sandbox" in name),
            rows=frozenset(self.unsettled_rows()),
        )

    @property
    def pool(self) -> StoragePool:
        return pools_from_config(self.config)["vms"]

    def _volumes(self) -> set[str]:
        """Everything that is in the pool, be it a file or an object; a client's notes are no part of it."""
        state = self.stack.state
        if state.pool_kind == "directory":
            return set(map(str, (state / "pools").rglob("*")))
        account = CephAccount(ceph.CLIENT, str(ceph.conf(state)), str(ceph.keyring(state)))
        return {found.key for found in connect(account).pool(ceph.POOL).list_objects()} - CEPH_FRAME

    def unsettled_rows(self) -> set[str]:
        """VMs, journal lines that are neither kept nor undone, and builds somebody holds."""
        with self.database.session() as session:
            vms = session.execute(select(Vm.name)).scalars()
            journal = session.execute(select(Resource.name).where(one_of(Resource.state, PENDING))).scalars()
            leases = session.execute(select(Build.id).where(Build.lease_owner.isnot(None))).scalars()
            return {*vms, *journal, *leases}


def _import_disk(pool: StoragePool, volume: str, file: Path, *, cloneable: bool) -> None:
    with file.open("rb") as stream:
        pool.import_stream(volume, stream, file.stat().st_size)
    if cloneable:
        pool.create_snapshot(volume, names.IMAGE_SNAPSHOT)
        pool.protect_snapshot(volume, names.IMAGE_SNAPSHOT)


@dataclass(frozen=True)
class Footprint:
    """Nine kinds of things that must not outlive a failed build."""

    mounts: frozenset[str]
    loop_devices: frozenset[str]
    processes: frozenset[str]
    volumes: frozenset[str]
    domains: frozenset[str]
    consoles: frozenset[str]
    directories: frozenset[str]
    temporary: frozenset[str]
    rows: frozenset[str]

    def since(self, earlier: "Footprint") -> dict[str, set[str]]:
        """What has come since; empty when nothing has."""
        new = {name: set(getattr(self, name) - getattr(earlier, name)) for name in self.__dataclass_fields__}
        return {name: found for name, found in new.items() if found}


def processes() -> dict[int, str]:
    """Command lines of all processes of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if line:
                found[int(entry.name)] = line
    return found


def loop_devices() -> list[str]:
    """Loop devices in use, with what is behind them."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(f"{entry.parts[3]}: {entry.read_text().strip()}")
        except OSError:
            continue
    return found
