"""Uploads and downloads of volumes, through a real channel to a node with a real pool."""

import io
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from pvccommon.database import Database
from pvccommon.models import Audit, Vm
from pvccommon.storage import PoolSpace
from pvccommon.storage.directory import DirectoryPool

MIB = 1024**2
VOLUMES = "/storage/ceph/volume"
DATA = random.Random(3).randbytes(MIB + 512) + bytes(3 * MIB) + b"\r\n--end" + bytes(505)

BOUNDARY = "b0undary"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="filename"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def upload(api: Any, data: bytes = DATA, path: str = "vms/golden", **query: Any) -> Any:
    query = {"image_format": "raw", "file_size": len(data), **query}
    given = {key: value for key, value in query.items() if value is not None}
    return post(api, HEAD + data + TAIL, given, path)


def post(api: Any, body: bytes, query: dict[str, Any], path: str = "vms/golden", **options: Any) -> Any:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return api.post(f"{VOLUMES}/{path}/upload", query, data=body, **{"content_type": kind, **options})


def content(pool: DirectoryPool, name: str = "golden") -> bytes:
    return b"".join(pool.export_stream(name))


def everything_in(pool: DirectoryPool) -> list[str]:
    frame = ("pool.lock", "volumes", "images")
    return [str(path) for path in pool.path.rglob("*") if path.name not in frame]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_volume_is_made_from_a_file_and_comes_back(api: Any, pool: DirectoryPool, expect: Any) -> None:
    assert "Created" in expect(upload(api), 200)["message"]
    assert content(pool) == DATA
    assert pool.stat_volume("golden").used_bytes < 2 * MIB
    answer = api.get(f"{VOLUMES}/vms/golden/download", buffered=True)
    assert (answer.status_code, answer.mimetype) == (200, "application/octet-stream")
    assert answer.content_length == len(DATA)
    assert answer.data == DATA


def test_a_volume_is_overwritten(api: Any, pool: DirectoryPool, expect: Any) -> None:
    pool.import_stream("golden", io.BytesIO(b"o" * 8 * MIB), 8 * MIB)
    assert "Overwrote" in expect(upload(api), 200)["message"]
    assert content(pool) == DATA.ljust(8 * MIB, b"\0")
    # Existing clients say no size for raw files; it follows from the length of the request.
    expect(upload(api, b"new", file_size=None), 200)
    assert content(pool) == b"new".ljust(8 * MIB, b"\0")


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"file_size": None}, "file_size"),
        ({"file_size": len(DATA) - 1}, "more than"),
        ({"file_size": len(DATA) + 1}, "ended after"),
        ({"file_size": "many"}, "whole number"),
        ({"image_format": "qed"}, "supported: raw, vmdk"),
        ({"image_format": "floppy"}, "must be one of"),
        ({"colour": "red"}, "colour"),
        ({"path": "nothing/golden"}, "pool"),
        ({"path": "vms/-x"}, "volume"),
        ({"file_size": 1 << 59}, "limit"),
    ],
)
def test_what_is_refused_leaves_nothing(
    api: Any,
    pool: DirectoryPool,
    expect: Any,
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, Any],
    word: str,
) -> None:
    monkeypatch.setattr(pool, "space", lambda: PoolSpace(1 << 60, 0, 1 << 60))
    assert word in expect(upload(api, **query), 400)["message"]
    eventually(lambda: everything_in(pool) == [])


def test_what_does_not_fit_changes_nothing(api: Any, pool: DirectoryPool, expect: Any) -> None:
    pool.import_stream("golden", io.BytesIO(b"o" * MIB), MIB)
    assert "resize" in expect(upload(api), 400)["message"]
    assert content(pool) == b"o" * MIB


def test_an_overwrite_that_breaks_off_says_so(api: Any, pool: DirectoryPool, expect: Any) -> None:
    pool.create_volume("golden", 8 * MIB)
    assert "mixed" in expect(upload(api, file_size=len(DATA) + 1), 400)["message"]


def test_open_volumes_are_not_overwritten(api: Any, pool: DirectoryPool, expect: Any) -> None:
    pool.create_volume("golden", 8 * MIB)
    pieces = pool.export_stream("golden")
    next(pieces)
    assert expect(upload(api), 503)["kind"] == "busy-retry"
    pieces.close()
    expect(upload(api), 200)


def test_disks_of_vms_are_not_overwritten(
    api: Any, pool: DirectoryPool, database: Database, expect: Any
) -> None:
    pool.create_volume("golden", 8 * MIB)
    with database.session() as session:
        volumes = [{"pool": "vms", "volume": "golden", "disk_id": "sda"}]
        session.add(
            Vm(name="web1", node="hv1", state="stop", memory_mib=1, vcpus=1, xml="<domain/>", volumes=volumes)
        )
    assert "VM web1" in expect(upload(api), 400)["message"]
    assert content(pool) == bytes(8 * MIB)


OTHER = HEAD.replace(b"file", b"more")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (HEAD + b"data" + TAIL, 200),
        (b"preamble\r\n" + HEAD + b"data" + TAIL + b"epilogue", 200),
        (HEAD + b"data", 400),
        (HEAD + b"data\r\n--" + BOUNDARY.encode(), 400),
        (HEAD, 400),
        (HEAD[:40], 400),
        (b"", 400),
        (b"data", 400),
        (HEAD + b"data\r\n" + OTHER + b"more" + TAIL, 400),
        (OTHER + b"more\r\n" + HEAD + b"data" + TAIL, 400),
        (HEAD.replace(b'; filename="filename"', b"") + b"data" + TAIL, 400),
        (b"--" + BOUNDARY.encode() + b"\r\nX: " + b"y" * 5 * MIB, 400),
        (HEAD + b"\r" + bytes(8 * MIB), 400),
    ],
)
def test_bodies(api: Any, pool: DirectoryPool, expect: Any, body: bytes, status: int) -> None:
    expect(post(api, body, {"file_size": 4}), status)
    if status == 200:
        assert content(pool)[:4] == b"data"
    else:
        eventually(lambda: everything_in(pool) == [])


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=x",
    ],
)
def test_other_kinds_of_bodies(api: Any, pool: DirectoryPool, expect: Any, kind: str) -> None:
    answer = post(api, b"data", {"file_size": 4}, content_type=kind)
    assert "multipart" in expect(answer, 400)["message"]


class Caller(io.BytesIO):
    """A body of which only the beginning comes."""

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        if not part:
            raise ConnectionResetError("gone")
        return part


def test_a_caller_who_goes_away_leaves_nothing(
    api: Any, pool: DirectoryPool, database: Database, expect: Any
) -> None:
    length = {"CONTENT_LENGTH": str(64 * MIB + len(HEAD) + len(TAIL))}
    body = Caller(HEAD + b"x" * 8 * MIB)
    answer = api.post(
        f"{VOLUMES}/vms/golden/upload",
        {"file_size": 64 * MIB},
        input_stream=body,
        environ_overrides=length,
        content_type=f"multipart/form-data; boundary={BOUNDARY}",
    )
    assert "went away" in expect(answer, 400)["message"]
    eventually(lambda: everything_in(pool) == [])
    with database.session() as session:
        [row] = session.query(Audit).all()
        assert (row.status, row.parameters["file_size"]) == (400, str(64 * MIB))


def test_a_download_that_is_left_ends(api: Any, pool: DirectoryPool, expect: Any) -> None:
    pool.import_stream("golden", io.BytesIO(b"x" * 64 * MIB), 64 * MIB)
    answer = api.get(f"{VOLUMES}/vms/golden/download", buffered=False)
    assert next(answer.iter_encoded())
    assert pool.is_open("golden")
    answer.close()
    eventually(lambda: not pool.is_open("golden"))
    expect(api.get(f"{VOLUMES}/vms/nothing/download"), 404)
    with pool._open_content("golden", "test", read_only=False):
        assert expect(api.get(f"{VOLUMES}/vms/golden/download"), 503)["kind"] == "busy-retry"


def test_too_many_at_one_time(api: Any, pool: DirectoryPool, answering: Any, expect: Any) -> None:
    pool.create_volume("golden", MIB)
    taken = [api.get(f"{VOLUMES}/vms/golden/download", buffered=False) for _ in range(4)]
    try:
        assert "4 transfers" in expect(upload(api, path="vms/other"), 503)["message"]
    finally:
        for answer in taken:
            answer.close()


def test_who_may(caller: Any, pool: DirectoryPool, expect: Any) -> None:
    viewer = caller("viewer")
    expect(upload(viewer), 403)
    expect(viewer.get(f"{VOLUMES}/vms/golden/download"), 403)


def test_the_document_tells_of_bytes(api: Any, expect: Any) -> None:
    paths = expect(api.get("/openapi.json"), 200)["paths"]
    path = "/api/v1/storage/ceph/volume/{pool}/{volume}"
    body = paths[f"{path}/upload"]["post"]["requestBody"]["content"]
    assert body["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"
    answer = paths[f"{path}/download"]["get"]["responses"]["200"]["content"]
    assert list(answer) == ["application/octet-stream"]
