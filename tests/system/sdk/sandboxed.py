"""Running a builder script as the worker does, without database and queue: real sandbox, broker and pool."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pvccommon.storage.directory import DirectoryPool
from pvcnoded.broker import Broker
from pvcnoded.conversation import Conversation
from pvcnoded.sandbox.sandbox import SandboxSpec, open_sandbox
from pvcnoded.sdk import sdk_zip

REPOSITORY = Path(__file__).resolve().parents[3]
BUILDERS = REPOSITORY / "provisioner-scripts" / "builders"
GIB = 1024**3

Json = dict[str, Any]


class KeptLog:
    """Stands in for the build log: keeps the lines, and prints them when asked to."""

    is_cut = False

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._verbose = bool(os.environ.get("SHOW_BUILD_LOG"))
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def output(self, line: str) -> None:
        with self._lock:
            self.lines.append(line)
            if self._verbose:
                print(f"{time.monotonic() - self._started:7.2f} {line}", flush=True)

    def info(self, line: str) -> None:
        self.output(line)

    def progress(self, message: str, percent: float | None) -> None:
        self.output(f"== {message} {percent if percent is not None else ''}")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class NoJournal:
    """Stands in for the journal: the test's pool is thrown away."""

    @contextmanager
    def making(self, kind: str, name: str) -> Iterator[None]:
        yield


class SandboxedBuild:
    """One build: `stage()` runs the script's stages in turn; `seconds` has how long each took."""

    def __init__(self, pool: DirectoryPool, plan: Json, first_uid: int = 300_000 * 8) -> None:
        self.pool, self.plan, self.log = pool, plan, KeptLog()
        self.seconds: dict[str, float] = {}
        self._spec = SandboxSpec(
            build_id="sdk-test", first_uid=first_uid, sdk_zip=sdk_zip(str(REPOSITORY / "provisioner-scripts"))
        )

    @contextmanager
    def opened(self, script: str) -> Iterator["SandboxedBuild"]:
        """The sandbox with the script loaded; its volumes stay in the pool afterwards."""
        with open_sandbox(self._spec) as sandbox:
            broker = Broker(self.plan, {self.pool.name: self.pool}, NoJournal(), sandbox, self.log)
            self._talk = Conversation(sandbox.channel, sandbox.output, self.log, broker.answer)
            try:
                self._call("load", {"type": "load", "script": script, "context": self.plan})
                yield self
            finally:
                sandbox.kill()
                broker.close()

    def stage(self, name: str) -> Any:
        """Run one stage; raises what the worker would see."""
        return self._call(name, {"type": "stage", "stage": name})

    def run(self, script: str) -> str:
        """All stages; returns the domain document."""
        with self.opened(script):
            self.stage("setup")
            domain_xml: str = self.stage("create")["domain_xml"]
            try:
                self.stage("prepare")
                self.stage("install")
            finally:
                self.stage("cleanup")
        return domain_xml

    def _call(self, name: str, message: Json) -> Any:
        started = time.monotonic()
        try:
            return self._talk.call(message, name, 1800)
        finally:
            self.seconds[name] = time.monotonic() - started


def plan(**changes: Any) -> Json:
    """A plan with one root disk; also serves as the script's context."""
    document: Json = {
        "vm_name": "web1",
        "vm_id": 1,
        "vm_uuid": "3b0e6b3e-7d14-4c24-9b2a-5f6b2a3c1d00",
        "vm_profile": "debian12",
        "vm_data": {"script_arguments": {}},
        "arguments": {},
        "userdata": None,
        "api_version": 1,
        "volumes": [volume("sda", size_bytes=4 * GIB, filesystem="ext4", mountpoint="/")],
        "networks": [{"vni": "1000", "mac": "52:54:01:00:01:00", "bridge": "vmbr1000"}],
        "domain": {"type": "qemu", "cpu_mode": "maximum", "memory_mib": 1024, "vcpus": 1},
    }
    return {**document, **changes}


def volume(disk_id: str, **changes: Any) -> Json:
    """One planned volume; blank unless told otherwise."""
    document: Json = {"pool": "vms", "volume": f"web1_{disk_id}", "disk_id": disk_id, "size_bytes": GIB}
    empty = {"filesystem": None, "filesystem_args": [], "mountpoint": None, "source_volume": None}
    return {**document, **empty, **changes}
