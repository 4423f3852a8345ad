"""The API's server as a process of its own."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pvcapid
import pvccommon

ROOT = Path(pvcapid.__file__).parents[1]
COMMON = Path(pvccommon.__file__).parents[1]


def start(*arguments: str, before: str = "", **options: Any) -> "subprocess.Popen[str]":
    """`before`: Python that runs first, to shorten limits."""
    code = f"{before}\nimport sys; from pvcapid.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", code, *arguments],
        env={"PYTHONPATH": f"{ROOT}:{COMMON}", "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class Served:
    """A server that runs; `output` is complete after `stop`."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port
        self.output = ""

    def get(self, path: str, token: str = "", **headers: str) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", path, headers={"X-Api-Key": token, **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def raw(self, data: bytes) -> bytes:
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=20)) as connection:
            connection.sendall(data)
            found = b""
            while chunk := connection.recv(65536):
                found += chunk
            return found

    def stop(self) -> float:
        """Seconds a SIGTERM takes."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        stdout, stderr = self.process.communicate(timeout=60)
        self.output = stdout + stderr
        return time.monotonic() - begun


@contextmanager
def serving(path: Path, port: int, before: str = "") -> Iterator[Served]:
    process = start("serve", "--config", str(path), before=before)
    try:
        deadline = time.monotonic() + 30
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Served(process, port)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
