"""Volumes through the API of a real stack, with each driver; nothing is left when something is killed."""

import hashlib
import io
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import image_uploads
import pytest
import requests
from cluster import Cluster

from pvc.multipart import FileBody
from pvccommon.run import run

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks")]

MIB = 1024**2
CONTENT = random.Random(4).randbytes(5 * MIB + 512) + bytes(20 * MIB) + b"end".ljust(512, b"!")
VOLUMES, SNAPSHOTS = "/storage/ceph/volume", "/storage/ceph/snapshot"


@pytest.fixture(params=["directory", "rbd"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The stack of the other tests, or the one over Ceph."""
    shared = {"directory": "directory_cluster", "rbd": "ceph_cluster"}[request.param]
    return cast(Cluster, request.getfixturevalue(shared))


def upload(cluster: Cluster, path: str, data: Any, size_bytes: int, form: str = "raw") -> requests.Response:
    body = FileBody(io.BytesIO(data)) if isinstance(data, bytes) else data
    return cluster.upload(f"{VOLUMES}/{path}/upload", body, image_format=form, file_size=size_bytes)


def checksum(cluster: Cluster, path: str) -> str:
    answer = cluster.request("GET", f"{VOLUMES}/{path}/download")
    assert answer.status_code == 200, answer.text
    return hashlib.sha256(answer.content).hexdigest()


def names(cluster: Cluster) -> list[str]:
    answer = cluster.request("GET", VOLUMES)
    return [row["name"] for row in answer.json()] if answer.status_code == 200 else []


def test_a_volume_s_whole_life(cluster: Cluster) -> None:
    uploaded = hashlib.sha256(CONTENT).hexdigest()
    assert upload(cluster, "vms/hand1", CONTENT, len(CONTENT)).status_code == 200
    [row] = cluster.get(VOLUMES, pool="vms")
    assert row["stats"]["size_bytes"] == len(CONTENT)
    assert row["stats"]["used_bytes"] < len(CONTENT) / 2
    assert checksum(cluster, "vms/hand1") == uploaded
    base = f"{SNAPSHOTS}/vms/hand1"
    cluster.change("POST", SNAPSHOTS, pool="vms", volume="hand1", snapshot="first")
    cluster.change("PUT", f"{base}/first", new_name="base")
    cluster.change("POST", f"{base}/base/protect")
    cluster.change("POST", f"{VOLUMES}/vms/hand1/clone", new_volume="hand2", snapshot="base")
    assert upload(cluster, "vms/hand1", b"new", 3).status_code == 200
    assert checksum(cluster, "vms/hand1") == hashlib.sha256(b"new".ljust(len(CONTENT), b"\0")).hexdigest()
    assert checksum(cluster, "vms/hand2") == uploaded
    assert cluster.request("POST", f"{base}/base/unprotect").status_code == 400
    cluster.change("POST", f"{VOLUMES}/vms/hand2/flatten")
    assert cluster.get(f"{VOLUMES}/vms/hand2")[0]["stats"]["parent"] is None
    cluster.change("POST", f"{base}/base/rollback")
    assert checksum(cluster, "vms/hand1") == uploaded
    cluster.change("POST", f"{base}/base/unprotect")
    cluster.change("DELETE", f"{base}/base")
    cluster.change("PUT", f"{VOLUMES}/vms/hand2", new_size="64M")
    cluster.change("PUT", f"{VOLUMES}/vms/hand2", new_name="hand3")
    assert cluster.get(f"{VOLUMES}/vms/hand3")[0]["stats"]["size"] == "64M"
    for name in ("hand1", "hand3"):
        cluster.change("DELETE", f"{VOLUMES}/vms/{name}")
    assert names(cluster) == []


def converted(directory: Path, form: str, *options: str) -> bytes:
    """CONTENT in another format."""
    raw, other = directory / "raw", directory / "other"
    raw.write_bytes(CONTENT)
    run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, str(raw), str(other)], timeout_s=60)
    return other.read_bytes()


def test_files_of_other_formats_become_raw_volumes(cluster: Cluster, tmp_path: Path) -> None:
    uploaded = hashlib.sha256(CONTENT).hexdigest()
    for form, options in (
        ("qcow2", ("-c",)),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vdi", ()),
        ("vpc", ("-o", "force_size")),
    ):
        data = converted(tmp_path, form, *options)
        for _ in ("made", "overwritten"):
            answer = upload(cluster, "vms/hand1", data, len(data), form)
            assert answer.status_code == 200, (form, answer.text)
            content = cluster.request("GET", f"{VOLUMES}/vms/hand1/download").content
            assert hashlib.sha256(content[: len(CONTENT)]).hexdigest() == uploaded, form
            assert not content[len(CONTENT) :].strip(b"\0")
            assert names(cluster) == ["hand1"] and image_uploads.names(cluster) == []
        cluster.change("DELETE", f"{VOLUMES}/vms/hand1")


def test_files_of_other_formats_are_refused_with_nothing_left(cluster: Cluster, tmp_path: Path) -> None:
    data = converted(tmp_path, "qcow2")
    backed = tmp_path / "backed"
    backing = ["-b", "/etc/shadow", "-F", "raw", "-u"]
    run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(backed), "1G"], timeout_s=60)
    cluster.change("POST", VOLUMES, pool="vms", volume="small", size="4M")
    for path, content, size_bytes, reason in (
        ("vms/hand1", backed.read_bytes(), None, "backing file"),
        ("vms/hand1", data[: len(data) // 2], None, ""),
        ("vms/hand1", data, len(data) + 1, "ended after"),
        ("vms/hand1", CONTENT, None, "magic"),
        ("vms/small", data, None, "small"),
    ):
        answer = upload(cluster, path, content, size_bytes or len(content), "qcow2")
        assert answer.status_code == 400 and reason in answer.text, (reason, answer.text)
        assert names(cluster) == ["small"] and image_uploads.names(cluster) == []
    cluster.change("DELETE", f"{VOLUMES}/vms/small")


class Stalling(io.BytesIO):
    """A file whose second half waits."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(bytes(range(256)) * (size_bytes // 256))
        self.name = "stalling"
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self._half = size_bytes // 2

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self._half:
            self.arrived.set()
            self.go_on.wait(60)
        return super().read(size)


def kill_api(cluster: Cluster) -> None:
    """The server's workers; its master starts others."""
    master = cluster.find_process("pvcapid.main serve")
    for pid in children(master):
        os.kill(pid, signal.SIGKILL)


def kill_commands(cluster: Cluster) -> None:
    os.kill(cluster.worker_pid("commands"), signal.SIGKILL)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.parametrize("kill", [kill_api, kill_commands])
def test_killed_in_the_middle_of_an_upload(cluster: Cluster, kill: Callable[[Cluster], None]) -> None:
    file = Stalling(32 * MIB)
    ended = threading.Event()

    def send() -> None:
        with suppress(requests.RequestException):
            upload(cluster, "vms/hand4", FileBody(file), 32 * MIB)
        ended.set()

    threading.Thread(target=send, daemon=True).start()
    assert file.arrived.wait(30)
    kill(cluster)
    file.go_on.set()
    assert ended.wait(60)
    until(lambda: cluster.request("GET", f"{VOLUMES}/vms/hand4").status_code == 404)
    # Whoever made it has cleaned up, or the next sweep does; then the name is free for another try.
    until(lambda: upload(cluster, "vms/hand4", b"x" * 512, 512).status_code == 200)
    cluster.change("DELETE", f"{VOLUMES}/vms/hand4")


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(requests.RequestException):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Leaving(FileBody):
    """A caller who goes away in the middle."""

    def __iter__(self) -> Iterator[bytes]:
        for count, part in enumerate(super().__iter__()):
            if count > 60:
                raise ConnectionError("the caller goes away")
            yield part


def test_a_caller_who_goes_away(cluster: Cluster) -> None:
    with pytest.raises((ConnectionError, requests.RequestException)):
        upload(cluster, "vms/hand5", Leaving(io.BytesIO(b"x" * 32 * MIB)), 32 * MIB)
    until(lambda: names(cluster) == [])
