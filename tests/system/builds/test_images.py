"""Images through a real stack, with each driver: of every kind, refused ones, and imports that are killed."""

import hashlib
import io
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import image_samples
import pytest
from cluster import Cluster, processes
from image_files import ova
from image_uploads import CHUNK_BYTES, IMAGES, MIB, Tus, names, post, tools, until

from pvc.multipart import FileBody

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_leaks", "no_images")]

GIB = 1024**3
CONTENT = random.Random(6).randbytes(5 * MIB) + bytes(20 * MIB) + b"end".ljust(512, b"!")
API_LIMIT_BYTES = 200 * MIB


@pytest.fixture(params=["directory", "rbd"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The stack of the other tests, or the one over Ceph."""
    shared = {"directory": "directory_cluster", "rbd": "ceph_cluster"}[request.param]
    return cast(Cluster, request.getfixturevalue(shared))


@pytest.fixture
def no_images(cluster: Cluster, no_leaks: None) -> Iterator[None]:
    """Whatever the test does, no row and no process of an import stays."""
    yield
    left = names(cluster)
    for name in left:
        cluster.request("DELETE", f"{IMAGES}/{name}")
    assert left == []
    until(lambda: tools(cluster) == [], "processes are left")


def image(cluster: Cluster, name: str) -> Any:
    until(lambda: cluster.get(f"{IMAGES}/{name}")[0]["state"] != "importing", "it is never ready")
    [found] = cluster.get(f"{IMAGES}/{name}")
    assert found["error"] is None
    return found


def volume_content(cluster: Cluster, found: Any, position: int = 0) -> bytes:
    return b"".join(cluster.pool.export_stream(found["volumes"][position]["volume_name"]))


def vmdk(directory: Path, raw: Path) -> bytes:
    target = directory / "stream.vmdk"
    convert = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*convert, str(raw), str(target)], check=True)
    return target.read_bytes()


def iso(size_bytes: int) -> bytes:
    """As much of an ISO 9660 file system as is looked at."""
    return image_samples.iso().ljust(size_bytes, b"\0")


def test_images_of_every_kind(cluster: Cluster, tmp_path: Path) -> None:
    archive = ova(tmp_path, CONTENT)
    (tmp_path / "raw").write_bytes(CONTENT)
    stream = vmdk(tmp_path, tmp_path / "raw")
    assert post(cluster, "raw", CONTENT, len(CONTENT)).status_code == 200
    assert post(cluster, "vmdk", stream, len(stream), format="vmdk").status_code == 200
    assert post(cluster, "cd", iso(4 * MIB), 4 * MIB, kind="iso", format="iso").status_code == 200
    Tus(cluster, "ova", len(archive), "ova", "ova").send(archive)
    for name in ("raw", "vmdk", "ova"):
        assert volume_content(cluster, image(cluster, name)) == CONTENT, name
    assert volume_content(cluster, image(cluster, "cd")) == iso(4 * MIB)
    assert image(cluster, "ova")["verified"] == {"x.ovf": "sha256", "disk1.vmdk": "sha256"}
    volume = image(cluster, "raw")["volumes"][0]["volume_name"]
    assert cluster.pool.stat_volume(volume).used_bytes < len(CONTENT) / 2, "zeros take no space"
    cluster.pool.clone_snapshot(volume, "base", "hand1")
    assert "hand1" in cluster.request("DELETE", f"{IMAGES}/raw").json()["message"]
    cluster.pool.delete_volume("hand1")
    for name in ("raw", "vmdk", "cd", "ova"):
        cluster.change("DELETE", f"{IMAGES}/{name}")


STAGED = {"qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi", "vmdk": "vmdk"}


def converted(directory: Path, raw: Path, form: str, *options: str) -> bytes:
    target = directory / f"disk.{form}"
    subprocess.run(["qemu-img", "convert", "-O", STAGED[form], *options, str(raw), str(target)], check=True)
    return target.read_bytes()


def test_formats_that_are_read_here_and_there(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    for form in STAGED:
        data = converted(tmp_path, tmp_path / "raw", form)
        upload = Tus(cluster, form, len(data), "disk", form)
        upload.send(data)
        found = image(cluster, form)
        assert volume_content(cluster, found)[: len(CONTENT)] == CONTENT, form
        assert [volume["disk_id"] for volume in found["volumes"]] == ["sda"]
        assert found["sha256"] == hashlib.sha256(data).hexdigest()
        cluster.change("DELETE", f"{IMAGES}/{form}")


def test_refused_staged_images_leave_nothing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    data = converted(tmp_path, tmp_path / "raw", "qcow2")
    backed = tmp_path / "backed"
    create = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/etc/shadow",
        "-u",
        str(backed),
        "1G",
    ]
    subprocess.run(create, check=True)
    huge = tmp_path / "huge"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(huge), "10T"], check=True)
    for name, content, more, word in (
        ("backed", backed.read_bytes(), {"format": "qcow2"}, "backing file"),
        ("huge", huge.read_bytes(), {"format": "qcow2"}, "virtual size"),
        ("other", CONTENT, {"format": "qcow2"}, "magic"),
        ("cut", data[: len(data) // 2], {"format": "qcow2"}, ""),
        ("wrong", data, {"format": "qcow2", "sha256": "0" * 64}, "SHA-256"),
    ):
        answer = post(cluster, name, content, len(content), **more)
        assert answer.status_code == 400, (name, answer.text)
        assert word in answer.json()["message"], answer.json()["message"]


def test_refused_images_leave_nothing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CONTENT)
    stream, archive = vmdk(tmp_path, tmp_path / "raw"), ova(tmp_path, CONTENT)
    damaged = bytearray(stream)
    damaged[len(stream) // 2] ^= 0xFF
    for name, data, more, word in (
        ("cut", stream[: len(stream) // 2], {"format": "vmdk"}, ""),
        ("damaged", bytes(damaged), {"format": "vmdk"}, ""),
        ("no-stream", CONTENT, {"format": "vmdk"}, "VMDK"),
        ("no-cd", CONTENT, {"kind": "iso", "format": "iso"}, "ISO 9660"),
        ("no-tar", CONTENT, {"kind": "ova", "format": "ova"}, ""),
        ("evil", ova(tmp_path, CONTENT, wrong_digest=True), {"kind": "ova", "format": "ova"}, "manifest"),
        ("cut-ova", archive[: len(archive) // 2], {"kind": "ova", "format": "ova"}, ""),
        ("other", CONTENT, {"sha256": "0" * 64}, "SHA-256"),
    ):
        answer = post(cluster, name, data, len(data), **more)
        assert answer.status_code == 400, (name, answer.text)
        assert word in answer.json()["message"]


def test_killed_in_the_middle(cluster: Cluster) -> None:
    upload = Tus(cluster, "golden", len(CONTENT), "disk", "raw")
    assert upload.append(0, CONTENT[:CHUNK_BYTES]).status_code == 204
    helpers = tools(cluster)
    assert helpers
    os.kill(cluster.worker_pid("commands"), signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in helpers), "the decoder goes on")
    until(lambda: names(cluster) == [], "the row stays")
    until(upload.is_gone, "the upload goes on")
    until(lambda: post(cluster, "golden", b"x" * 512, 512).status_code == 200, "the name is taken")
    cluster.change("DELETE", f"{IMAGES}/golden")


class Zeros(io.BytesIO):
    """A file of zeros that takes no memory."""

    name = "zeros"

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._size_bytes, self._position = size_bytes, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = self._size_bytes - self._position
        piece = bytes(left if size is None or size < 0 else min(size, left))
        self._position += len(piece)
        return piece


@pytest.mark.parametrize("cluster", ["directory"], indirect=True)
def test_large_images_take_no_memory(cluster: Cluster, tmp_path: Path) -> None:
    with open(tmp_path / "raw", "wb") as sparse:
        sparse.write(CONTENT)
        sparse.truncate(50 * GIB)
    stream = vmdk(tmp_path, tmp_path / "raw")
    assert post(cluster, "sparse", stream, len(stream), format="vmdk").status_code == 200
    assert image(cluster, "sparse")["volumes"][0]["size_bytes"] == 50 * GIB
    assert post(cluster, "long", FileBody(Zeros(GIB)), GIB).status_code == 200
    servers = [
        pid for pid, line in processes().items() if "pvcapid.main serve" in line and cluster.is_ours(pid)
    ]
    peaks = [peak_bytes(pid) for pid in servers]
    assert len(peaks) > 1
    assert max(peaks) < API_LIMIT_BYTES
    for name in ("sparse", "long"):
        cluster.change("DELETE", f"{IMAGES}/{name}")


def peak_bytes(pid: int) -> int:
    """The most memory a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
