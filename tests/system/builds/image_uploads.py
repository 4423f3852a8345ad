"""Uploads of images to a running stack, and what such an import may have left."""

import base64
import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from cluster import Cluster, processes

from pvc.multipart import FileBody

MIB = 1024**2
IMAGES = "/provisioner/image"
CHUNK_BYTES = 4 * MIB
TOOLS = ("pvccommon.images.decoder", "pvccommon.images.fetcher", "pvccommon.images.inspector", "qemu-img ")


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(requests.RequestException):
            if condition():
                return
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def names(cluster: Cluster) -> list[str]:
    answer = cluster.request("GET", IMAGES)
    return [image["name"] for image in answer.json()] if answer.status_code == 200 else []


def tools(cluster: Cluster) -> list[int]:
    """Processes that read images for this stack: those below its worker, or whose parent is gone."""
    worker = cluster.worker_pid("commands")
    found = [pid for pid, line in processes().items() if any(tool in line for tool in TOOLS)]
    return [pid for pid in found if {worker, 1} & set(ancestors(pid))]


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        if pid > 1 or not str(pid).isdigit():
            yield pid


def post(cluster: Cluster, name: str, data: Any, size_bytes: int, **more: Any) -> requests.Response:
    query = {"kind": "disk", "format": "raw", "pool": "vms", "file_size": size_bytes} | more
    return cluster.upload(f"{IMAGES}/{name}", _body(data), **query)


def post_ova(cluster: Cluster, name: str, data: bytes) -> requests.Response:
    """As existing clients do."""
    return cluster.upload(f"/provisioner/ova/{name}", _body(data), pool="vms", ova_size=len(data))


def _body(data: Any) -> FileBody:
    return FileBody(io.BytesIO(data)) if isinstance(data, bytes) else data


class Tus:
    """An upload in chunks."""

    def __init__(
        self, cluster: Cluster, name: str, size_bytes: int, kind: str, form: str, **more: str
    ) -> None:
        self._headers = {"X-Api-Key": cluster.environment["PVC_API_KEY"], "Tus-Resumable": "1.0.0"}
        values = {"name": name, "kind": kind, "format": form, "pool": "vms", **more}
        metadata = ",".join(
            f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in values.items()
        )
        answer = self._send(
            "POST", cluster.url + IMAGES + "/upload", Upload_Length=size_bytes, Upload_Metadata=metadata
        )
        assert answer.status_code == 201, answer.text
        self._url = cluster.url.removesuffix("/api/v1") + answer.headers["Location"]

    def append(self, offset: int, chunk: bytes) -> requests.Response:
        digest = base64.b64encode(hashlib.sha256(chunk).digest()).decode()
        kind = "application/offset+octet-stream"
        checksum = f"sha256 {digest}"
        return self._send(
            "PATCH", self._url, chunk, Upload_Offset=offset, Upload_Checksum=checksum, Content_Type=kind
        )

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            answer = self.append(start, data[start : start + CHUNK_BYTES])
            assert answer.status_code == 204, answer.text

    def is_gone(self) -> bool:
        return self._send("HEAD", self._url).status_code in (404, 410)

    def _send(self, method: str, url: str, body: bytes | None = None, **headers: Any) -> requests.Response:
        given = {key.replace("_", "-"): str(value) for key, value in headers.items()}
        return requests.request(method, url, data=body, headers=self._headers | given, timeout=120)
