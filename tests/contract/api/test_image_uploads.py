"""Uploads of images in chunks (tus), with real imports of a node with a real pool."""

import base64
import contextlib
import hashlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pvcapid.image_uploads
from pvccommon.config import Images
from pvccommon.config import Node as NodeSettings
from pvccommon.database import Database
from pvccommon.models import Audit, Image, ImageState
from pvccommon.storage.directory import DirectoryPool
from pvccommon.transfer import Channel
from pvcnoded.imports import importer
from pvcnoded.imports import session as node_session
from pvcnoded.transfers import Transfers

MIB = 1024**2
IMAGES = "/provisioner/image"
UPLOAD = "/provisioner/image/upload"
PREFIX = "/api/v1"
RANDOM = random.Random(5)
DATA = RANDOM.randbytes(3 * MIB) + bytes(8 * MIB) + RANDOM.randbytes(MIB) + bytes(512)
VERSION = {"Tus-Resumable": "1.0.0"}


def encode(value: str | bytes) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()


def create(api: Any, size_bytes: int = len(DATA), headers: dict[str, str] | None = None, **more: Any) -> Any:
    values = {"name": "golden", "kind": "disk", "format": "raw", "pool": "vms", **more}
    metadata = ",".join(f"{key} {encode(value)}" for key, value in values.items() if value is not None)
    given = {**VERSION, "Upload-Length": str(size_bytes), "Upload-Metadata": metadata}
    return api.post(UPLOAD, headers=given | (headers or {}))


def begin(api: Any, **more: Any) -> str:
    """The path of a new upload."""
    answer = create(api, **more)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    location = answer.headers["Location"]
    assert isinstance(location, str) and location.startswith(PREFIX + UPLOAD)
    return location.removeprefix(PREFIX)


def patch(
    api: Any, path: str, offset: int, chunk: bytes, checksum: str | None = "sha256", **options: Any
) -> Any:
    headers = {**VERSION, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    if checksum is not None:
        headers["Upload-Checksum"] = f"{checksum} {encode(hashlib.new(checksum, chunk).digest())}"
    headers |= options.pop("headers", {})
    return api("PATCH", path, headers=headers, data=options.pop("body", chunk), **options)


def offset_of(api: Any, path: str) -> int:
    answer = api("HEAD", path, headers=VERSION)
    assert answer.status_code == 200
    assert answer.headers["Upload-Length"] == str(len(DATA))
    return int(answer.headers["Upload-Offset"])


def send_all(api: Any, path: str, data: bytes = DATA, chunk_bytes: int = 5 * MIB) -> None:
    for start in range(0, len(data), chunk_bytes):
        answer = patch(api, path, start, data[start : start + chunk_bytes])
        assert answer.status_code == 204, answer.text
        assert answer.headers["Upload-Offset"] == str(min(len(data), start + chunk_bytes))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ready(api: Any, pool: DirectoryPool) -> dict[str, Any]:
    """The image, which has the content of DATA."""
    eventually(lambda: api.get(f"{IMAGES}/golden").json[0]["state"] != "importing")
    [image] = api.get(f"{IMAGES}/golden").json
    assert image["error"] is None
    assert image["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert b"".join(pool.export_stream(image["volumes"][0]["volume_name"])) == DATA
    assert isinstance(image, dict)
    return image


def everything_in(pool: DirectoryPool) -> list[str]:
    frame = ("pool.lock", "volumes", "images")
    return [str(path) for path in pool.path.rglob("*") if path.name not in frame]


def nothing_left(api: Any, pool: DirectoryPool) -> bool:
    return everything_in(pool) == [] and api.get(IMAGES).status_code == 404


def test_what_is_spoken(api: Any) -> None:
    answer = api("OPTIONS", UPLOAD)
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert set(answer.headers["Tus-Extension"].split(",")) == {"creation", "checksum", "termination"}
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"


def test_chunks_become_an_image(api: Any, pool: DirectoryPool, database: Database) -> None:
    path = begin(api)
    [image] = api.get(f"{IMAGES}/golden").json
    assert (image["state"], image["size_bytes"]) == ("importing", len(DATA))
    send_all(api, path)
    ready(api, pool)
    assert offset_of(api, path) == len(DATA)
    assert patch(api, path, len(DATA), b"").status_code == 204
    assert patch(api, path, 0, b"x" * 512).status_code == 409
    with database.session() as session:
        assert session.query(Audit).filter_by(status=201).one().parameters["name"] == "golden"
        assert session.query(Audit).filter_by(method="PATCH").count() == 1  # the refused one


def test_ten_cuts_give_the_same_checksum(api: Any, pool: DirectoryPool) -> None:
    path = begin(api, sha256=hashlib.sha256(DATA).hexdigest())
    offset, cuts = 0, 0
    while offset < len(DATA):
        chunk = DATA[offset : offset + RANDOM.randrange(MIB // 2, 2 * MIB)]
        if cuts < 10 and RANDOM.random() < 0.6:
            part = chunk[: RANDOM.randrange(len(chunk))]
            cut = {"CONTENT_LENGTH": str(len(chunk))}
            assert patch(api, path, offset, chunk, body=part, environ_overrides=cut).status_code == 400
            cuts += 1
        else:
            assert patch(api, path, offset, chunk).status_code == 204
        before, offset = offset, offset_of(api, path)
        assert offset in (before, before + len(chunk)), "a chunk counts as a whole or not at all"
    assert cuts == 10
    ready(api, pool)


def test_a_wrong_checksum_takes_nothing(api: Any, pool: DirectoryPool) -> None:
    path = begin(api)
    answer = patch(api, path, 0, DATA[:MIB], body=DATA[1 : MIB + 1])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (460, "0")
    assert offset_of(api, path) == 0
    assert patch(api, path, 0, DATA[:MIB], "sha1").status_code == 204
    assert patch(api, path, MIB, DATA[MIB : 2 * MIB], None).status_code == 204
    for wrong in ("md5 AAAA", "sha256", "sha256 AAAA", "sha256 !", ""):
        assert patch(api, path, 2 * MIB, b"x", headers={"Upload-Checksum": wrong}).status_code == 400, wrong
    assert offset_of(api, path) == 2 * MIB


def test_a_wrong_offset_is_a_conflict(api: Any, pool: DirectoryPool) -> None:
    path = begin(api)
    assert patch(api, path, 0, DATA[:MIB]).status_code == 204
    for offset in (0, MIB - 1, MIB + 1, len(DATA)):
        answer = patch(api, path, offset, b"x")
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, str(MIB))
    for offset in ("-1", "", "x", "9" * 30):
        assert patch(api, path, 0, b"x", headers={"Upload-Offset": offset}).status_code == 400
    assert offset_of(api, path) == MIB


def test_of_two_writers_one_wins(caller: Any, api: Any, pool: DirectoryPool) -> None:
    path = begin(api)
    second = caller("operator")
    for start in range(0, len(DATA), 4 * MIB):
        answers: list[Any] = []
        chunk = DATA[start : start + 4 * MIB]

        def send(by: Any, start: int = start, chunk: bytes = chunk, answers: list[Any] = answers) -> None:
            answers.append(patch(by, path, start, chunk).status_code)

        threads = [threading.Thread(target=send, args=(by,)) for by in (api, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [204, 409]
    ready(api, pool)


def test_an_upload_is_ended(api: Any, pool: DirectoryPool) -> None:
    path = begin(api)
    assert patch(api, path, 0, DATA[:MIB]).status_code == 204
    assert api("DELETE", path, headers=VERSION).status_code == 204
    assert nothing_left(api, pool)
    assert api("HEAD", path, headers=VERSION).status_code == 404
    assert patch(api, path, MIB, b"x").status_code == 404
    assert patch(api, path, 0, b"x").status_code == 404


def test_an_upload_is_ended_at_any_moment_of_its_beginning(api: Any, pool: DirectoryPool) -> None:
    for number in range(12):
        path = begin(api)
        time.sleep(number * 0.01)  # the decoder is a little further each time
        assert api.delete(f"{IMAGES}/golden").status_code == 200
        assert nothing_left(api, pool)
        assert patch(api, path, 0, b"x").status_code == 404


def test_an_upload_that_waits_too_long_ends(api: Any, answering: Any, serve_pool: Any, tmp_path: Any) -> None:
    answering.image_settings = Images(upload_idle_s=1)
    pool = DirectoryPool("vms", tmp_path / "pool")
    serve_pool("hv1", pool)
    path = begin(api)
    assert patch(api, path, 0, DATA[:MIB]).status_code == 204
    eventually(lambda: nothing_left(api, pool))
    assert patch(api, path, MIB, b"x").status_code == 404


def test_a_node_that_began_anew_has_no_uploads(
    api: Any, pool: DirectoryPool, serve_pool: Any, database: Database
) -> None:
    path = begin(api)
    serve_pool("hv1", pool)
    assert patch(api, path, 0, DATA[:MIB]).status_code == 404
    assert api("HEAD", path, headers=VERSION).status_code == 404


def test_a_node_daemon_that_ends_says_so_to_the_sender_of_a_chunk(
    api: Any, pool: DirectoryPool, answering: Any, expect: Any
) -> None:
    path = begin(api)
    assert patch(api, path, 0, DATA[:MIB]).status_code == 204
    append = answering.verbs["hv1"]["image.append"]

    def append_and_end(arguments: dict[str, Any]) -> Any:
        taken = append(arguments)
        answering.imports["hv1"].end_all(10)
        return taken

    answering.verbs["hv1"]["image.append"] = append_and_end
    error = expect(patch(api, path, MIB, DATA[MIB : 2 * MIB]), 503)
    assert (error["kind"], error["why"]) == (
        "busy-retry",
        "the node daemon was restarted while it was imported",
    )
    assert error["hint"]
    assert nothing_left(api, pool)
    assert api("HEAD", path, headers=VERSION).status_code == 404


def test_a_node_that_breaks_off_may_return(
    api: Any, pool: DirectoryPool, answering: Any, expect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begin(api)
    assert patch(api, path, 0, DATA[:MIB]).status_code == 204
    transfers = Transfers(NodeSettings(name="hv1"))
    broken = {"image.append": lambda _: {"offer": transfers.offer("break off", Channel.close)}}
    silent = {"image.state": lambda _: time.sleep(2), "image.append": lambda _: time.sleep(2)}
    monkeypatch.setattr(pvcapid.image_uploads, "ANSWER_TIMEOUT_S", 0.5)
    whole = answering.verbs["hv1"]
    for verbs in (broken, silent):
        answering.verbs["hv1"] = {**whole, **verbs}
        error = expect(patch(api, path, MIB, DATA[MIB : 2 * MIB]), 503)
        assert error["kind"] == "busy-retry"
        assert error["why"].startswith("the node that takes it does not answer: ")
        assert error["hint"].startswith("try again")
    assert api("HEAD", path, headers=VERSION).status_code == 503
    answering.verbs["hv1"] = whole
    assert offset_of(api, path) == MIB


def test_a_refused_image_is_told_with_its_chunk(api: Any, pool: DirectoryPool, expect: Any) -> None:
    path = begin(api, kind="iso", format="iso")
    answer = patch(api, path, 0, DATA[:MIB])
    if answer.status_code == 204:  # the verdict came a moment later
        eventually(lambda: api.get(f"{IMAGES}/golden").json[0]["state"] == "failed")
        answer = patch(api, path, MIB, DATA[MIB : 2 * MIB])
    assert "ISO 9660" in expect(answer, 400)["message"]
    eventually(lambda: nothing_left(api, pool))
    assert api("HEAD", path, headers=VERSION).status_code == 404


def test_a_failure_nobody_was_told_stays_to_be_seen(
    api: Any, pool: DirectoryPool, expect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_session, "FINISH_S", 0.0)
    path = begin(api, size_bytes=MIB, sha256="0" * 64)
    assert patch(api, path, 0, DATA[:MIB]).status_code in (204, 400)
    if api.get(IMAGES).status_code == 200:
        eventually(lambda: api.get(f"{IMAGES}/golden").json[0]["state"] == "failed")
        [image] = expect(api.get(f"{IMAGES}/golden"), 200)
        assert "SHA-256" in image["error"]["why"]
        assert api("HEAD", path, headers=VERSION).status_code == 410
        assert "SHA-256" in expect(patch(api, path, MIB, b""), 400)["message"]
    eventually(lambda: nothing_left(api, pool))


def test_more_than_announced_is_refused(api: Any, pool: DirectoryPool, expect: Any) -> None:
    path = begin(api, size_bytes=MIB)
    assert "announced" in expect(patch(api, path, 0, DATA[: MIB + 1]), 400)["message"]
    assert patch(api, path, 0, DATA[:MIB]).status_code == 204


@pytest.mark.parametrize(
    ("size", "headers", "more", "status", "word"),
    [
        (0, {}, {}, 400, "Upload-Length"),
        (1 << 55, {}, {}, 400, "limit"),
        (MIB, {"Upload-Length": "x"}, {}, 400, "Upload-Length"),
        (MIB, {"Tus-Resumable": "0.2"}, {}, 412, "Tus-Resumable"),
        (MIB, {"Upload-Metadata": ""}, {}, 400, "name"),
        (MIB, {"Upload-Metadata": "name !!!"}, {}, 400, "base64"),
        (MIB, {"Upload-Metadata": "name"}, {}, 400, "name"),
        (MIB, {"Upload-Metadata": "name AA=="}, {}, 400, "name"),
        (MIB, {}, {"name": "plan"}, 400, "name"),
        (MIB, {}, {"name": "a/b"}, 400, "name"),
        (MIB, {}, {"pool": "nothing"}, 400, "pool"),
        (MIB, {}, {"kind": "iso"}, 400, "format"),
        (MIB, {}, {"colour": "red"}, 400, "colour"),
    ],
)
def test_what_cannot_begin(
    api: Any, pool: DirectoryPool, expect: Any, size: int, headers: Any, more: Any, status: int, word: str
) -> None:
    answer = expect(create(api, size, headers, **more), status)
    assert word in answer["message"]
    assert nothing_left(api, pool)


def test_chunks_of_other_shapes(api: Any, pool: DirectoryPool) -> None:
    path = begin(api)
    assert patch(api, path, 0, b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert patch(api, path, 0, bytes(16 * MIB + 1)).status_code == 413
    assert patch(api, path, 0, b"x", headers={"Tus-Resumable": "2"}).status_code == 412
    for other in ("0-" + "0" * 32, "x", path.rpartition("/")[2][:-1] + "x", f"1-{'0' * 32}"):
        assert patch(api, f"{UPLOAD}/{other}", 0, b"x").status_code == 404
    assert offset_of(api, path) == 0


def test_only_so_many_at_one_time(api: Any, answering: Any, serve_pool: Any, tmp_path: Any) -> None:
    answering.image_settings = Images(imports=2)
    serve_pool("hv1", DirectoryPool("vms", tmp_path / "pool"))
    paths = [begin(api, name=f"i{number}") for number in range(2)]
    assert create(api, name="i2").status_code == 503
    assert api("DELETE", paths[0], headers=VERSION).status_code == 204
    begin(api, name="i2")


def test_who_may(caller: Any, api: Any, pool: DirectoryPool) -> None:
    path = begin(api)
    viewer = caller("viewer")
    assert create(viewer).status_code == 403
    for method in ("HEAD", "PATCH", "DELETE"):
        assert viewer(method, path, headers=VERSION).status_code == 403


def test_images_of_dead_processes_are_known_by_their_owner(
    api: Any, pool: DirectoryPool, database: Database
) -> None:
    begin(api)
    with database.session() as session:
        image = session.query(Image).one()
        assert image.state == ImageState.IMPORTING
        assert image.owner.startswith("hv1/")
        assert next(itertools.islice(image.owner.split("/"), 2, None)).isdigit()


def stop_decoders() -> list[int]:
    """Stop what reads images for this process, as if it hung; their pids."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"pvccommon.images.decoder" in (entry / "cmdline").read_bytes():
                if os.getpid() in ancestors(int(entry.name)):
                    os.kill(int(entry.name), signal.SIGSTOP)
                    found.append(int(entry.name))
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "STALL_S", 2)
    monkeypatch.setattr(node_session, "FINISH_S", 0.1)


@pytest.mark.usefixtures("short_times")
def test_a_decoder_that_hangs_is_ended_and_the_sender_of_the_next_chunk_is_told(
    api: Any, pool: DirectoryPool
) -> None:
    path = begin(api)
    assert patch(api, path, 0, DATA[: 4 * MIB]).status_code == 204
    stopped = stop_decoders()
    answers = []
    for offset in range(4 * MIB, len(DATA), 2 * MIB):  # the pipe takes some, and one waits in memory
        answers.append(patch(api, path, offset, DATA[offset : offset + 2 * MIB]))
        if answers[-1].status_code != 204:
            break
    assert "what reads it did nothing for 2 s" in answers[-1].json["message"]
    assert_gone(api, pool, stopped)


@pytest.mark.usefixtures("short_times")
def test_a_decoder_that_hangs_at_the_end_is_told_by_the_image(
    api: Any, pool: DirectoryPool, expect: Any
) -> None:
    path, half = begin(api, size_bytes=64 * 1024), 32 * 1024
    assert patch(api, path, 0, DATA[:half]).status_code == 204
    stopped = stop_decoders()
    assert patch(api, path, half, DATA[half : 2 * half]).status_code == 204
    eventually(lambda: api.get(f"{IMAGES}/golden").json[0]["state"] == "failed")
    [image] = expect(api.get(f"{IMAGES}/golden"), 200)
    assert image["error"]["why"] == "what reads it did nothing for 2 s"
    expect(api.delete(f"{IMAGES}/golden"), 200)
    assert_gone(api, pool, stopped)


def assert_gone(api: Any, pool: DirectoryPool, processes: list[int]) -> None:
    assert processes
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
    eventually(lambda: everything_in(pool) == [] and api.get(IMAGES).status_code == 404)


def test_an_import_that_was_removed_elsewhere_ends_here(
    api: Any, pool: DirectoryPool, database: Database, answering: Any
) -> None:
    importing, path = answering.imports["hv1"], begin(api)
    assert patch(api, path, 0, DATA[: 4 * MIB]).status_code == 204
    importing.end_removed()
    assert offset_of(api, path) == 4 * MIB
    with database.session() as session:
        [image] = session.query(Image).all()
        image.owner = "hv9/boot/1/1"
    importing.end_removed()
    eventually(lambda: importing.find(image.id) is None)
    assert api("HEAD", path, headers=VERSION).status_code == 404
    with database.session() as session:
        assert session.query(Image).count() == 0
    assert everything_in(pool) == []
