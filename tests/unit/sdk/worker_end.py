"""The worker's end of the protocol, played by the test: a real socket pair and a real runner process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SDK = Path(__file__).resolve().parents[3] / "provisioner-scripts"
BUILDERS = SDK / "builders"

Json = dict[str, Any]
Answer = Callable[[str, Json], Json]


def context(**changes: Any) -> Json:
    """A context document as the worker sends it."""
    document: Json = {
        "vm_name": "web1",
        "vm_id": 1,
        "vm_uuid": "3b0e6b3e-7d14-4c24-9b2a-5f6b2a3c1d00",
        "vm_profile": "debian12",
        "vm_data": {"script_arguments": {}},
        "arguments": {},
        "userdata": None,
        "api_version": 1,
        "volumes": [volume("sda", mountpoint="/", filesystem="ext4"), volume("sdb")],
        "networks": [{"vni": "1000", "mac": "52:54:01:00:01:00", "bridge": "vmbr1000"}],
        "domain": {
            "type": "qemu",
            "machine": "q35",
            "cpu_mode": "maximum",
            "firmware": "bios",
            "memory_mib": 1024,
            "vcpus": 2,
            "serial": True,
            "vnc": False,
            "vnc_bind": None,
            "architecture": "x86_64",
        },
    }
    return {**document, **changes}


def volume(disk_id: str, **changes: Any) -> Json:
    """One of the context's volumes; blank unless told otherwise."""
    document: Json = {
        "pool": "vms",
        "volume": f"web1_{disk_id}",
        "disk_id": disk_id,
        "size_bytes": 4 * 1024**3,
        "filesystem": None,
        "filesystem_args": [],
        "mountpoint": None,
        "source_volume": None,
    }
    return {**document, **changes}


class WorkerEnd:
    """Starts the runner and talks to it. `requests` are the verbs it asked for, with their arguments."""

    def __init__(self, answer: Answer | None = None, path: str | None = None) -> None:
        self.requests: list[tuple[str, Json]] = []
        self._answer = answer or (lambda verb, args: {})
        ours, theirs = socket.socketpair()
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path or str(SDK)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vmbuilder.runner"],
            env={**environment, "PVC_CHANNEL_FD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        theirs.close()
        self.socket = ours
        self.socket.settimeout(60)
        self._incoming = ours.makefile("rb")

    def __enter__(self) -> "WorkerEnd":
        return self

    def __exit__(self, *_: object) -> None:
        self._incoming.close()
        self.socket.close()
        self.process.kill()
        if self.process.stdout and not self.process.stdout.closed:
            self.process.stdout.close()
        self.process.wait()

    def send(self, message: Json) -> None:
        """Send one message."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Json | None:
        """The runner's next message, or None when it has gone."""
        line = self._incoming.readline()
        return json.loads(line) if line else None

    def load(self, script: str, **changes: Any) -> Json:
        """Send the script; returns the runner's verdict."""
        return self._until_outcome({"type": "load", "script": script, "context": context(**changes)})

    def stage(self, name: str) -> Json:
        """Run a stage, answering the script's requests; returns the runner's verdict."""
        return self._until_outcome({"type": "stage", "stage": name})

    def end(self) -> tuple[int, str]:
        """Say goodbye; returns the exit code and everything that was written to the log."""
        self.send({"type": "exit"})
        assert self.process.stdout is not None
        output = self.process.stdout.read().decode()
        return self.process.wait(10), output

    def _until_outcome(self, message: Json) -> Json:
        self.send(message)
        while (reply := self.receive()) is not None:
            if reply["type"] != "request":
                return reply
            self.requests.append((reply["verb"], reply["args"]))
            self.send({"type": "reply", "id": reply["id"], **self._outcome(reply["verb"], reply["args"])})
        return {"type": "gone"}

    def _outcome(self, verb: str, arguments: Json) -> Json:
        result = self._answer(verb, arguments)
        return result if "error" in result else {"result": result}
