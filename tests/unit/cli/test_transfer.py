"""Uploads and downloads of volumes: streaming, early answers, whole files or none, Ctrl-C."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import FakeApi
from cli_socket_api import Exchange, socket_api
from flask import Response

from pvc.errors import EXIT_CODES, CliError
from pvc.multipart import FileBody
from pvc.new_file import SparseWriter
from pvc.transfer_progress import end_text, progress_text

CLIENT = Path(__file__).resolve().parents[3] / "client-cli"
UPLOAD = "POST /storage/ceph/volume/vms/data/upload"
DOWNLOAD = "GET /storage/ceph/volume/vms/data/download"
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(700_000))
    return path


def through(pvc_run: Any, url: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run over the network instead of the WSGI transport."""
    monkeypatch.setenv("PVC_API_URL", url)
    monkeypatch.setattr(pvc_run, "adapter", None)
    return pvc_run("storage", "volume", *arguments)


def program(url: str, *arguments: str) -> "subprocess.Popen[str]":
    """The real program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pvc", "storage", "volume", *arguments],
        env={**os.environ, "PYTHONPATH": str(CLIENT), "PVC_API_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_upload_is_one_part_of_exact_length(api: FakeApi, pvc_run: Any, image: Path) -> None:
    api.answers[UPLOAD] = {"message": "Stored."}
    result = pvc_run("storage", "volume", "upload", "vms", "data", str(image), "-f", "qcow2", "--node", "hv1")
    assert (result.code, result.out) == (0, "Stored.\n")
    (asked,) = api.asked
    assert asked.query == {"image_format": ["qcow2"], "file_size": ["700000"], "node": ["hv1"]}
    assert asked.form == {}
    ((name, part),) = asked.files.items()
    assert (name, part.filename, part.mimetype) == ("file", "filename", "application/octet-stream")
    assert part.read() == image.read_bytes()
    assert "Transfer-Encoding" not in asked.headers
    assert "waiting for the server to convert it" in result.err


def test_a_qcow2_file_sent_as_raw_is_remarked(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"QFI\xfb" + bytes(100))
    api.answers[UPLOAD] = {"message": "Stored."}
    upload = ("storage", "volume", "upload", "vms", "data", str(tmp_path / "image"))
    assert "begins like a qcow2 image" in pvc_run(*upload).err
    assert api.asked[-1].files["file"].read() == (tmp_path / "image").read_bytes()
    assert "begins like" not in pvc_run(*upload, "-f", "qcow2").err


def test_upload_of_an_empty_file(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    api.answers[UPLOAD] = {"message": "Stored."}
    assert pvc_run("storage", "volume", "upload", "vms", "data", str(tmp_path / "empty")).code == 0
    assert api.asked[0].query == {"image_format": ["raw"], "file_size": ["0"]}


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1])
def test_length_of_the_body_is_what_it_gives(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    heard: list[int] = []
    with (tmp_path / "file").open("rb") as file:
        body = FileBody(file, advance=heard.append)
        assert len(body) == len(b"".join(body))
    assert sum(heard) == size


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    with path.open("rb", buffering=0) as file:
        body = iter(FileBody(file))
        next(body), next(body)
        os.truncate(path, 0)
        with pytest.raises(CliError, match="became shorter"):
            next(body)


@pytest.mark.parametrize("name", ["none", "directory", "pipe"])
def test_what_cannot_be_uploaded(api: FakeApi, pvc_run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    keep_open = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        result = pvc_run("storage", "volume", "upload", "vms", "data", str(tmp_path / name))
    finally:
        os.close(keep_open)
    assert result.code == EXIT_CODES["wrong-input"]
    assert api.asked == []


def refuse_unread(exchange: Exchange) -> None:
    exchange.answer("507 Insufficient Storage", {"message": "the pool is full", "kind": "no-space"})


def refuse_in_the_middle(exchange: Exchange) -> None:
    exchange.read_body(MIB)
    refuse_unread(exchange)


def refuse_and_listen_on(exchange: Exchange) -> None:
    refuse_unread(exchange)
    exchange.wait_for_end()


@pytest.mark.parametrize("handler", [refuse_unread, refuse_in_the_middle, refuse_and_listen_on])
def test_an_early_answer_is_shown(
    pvc_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handler: Callable[[Exchange], None]
) -> None:
    size = 1 << 30
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    with socket_api(handler) as (url, exchanges):
        result = through(pvc_run, url, monkeypatch, "upload", "vms", "data", str(tmp_path / "large"))
    assert (result.code, result.err) == (EXIT_CODES["no-space"], "error: the pool is full\n")
    assert len(exchanges) == 1
    assert exchanges[0].length > size


def test_an_upload_that_breaks_is_sent_once(
    pvc_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    with socket_api(lambda exchange: exchange.read_body(MIB)) as (url, exchanges):
        result = through(pvc_run, url, monkeypatch, "upload", "vms", "data", str(tmp_path / "large"))
    assert result.code == EXIT_CODES["unreachable"]
    assert len(exchanges) == 1


def test_a_server_that_reads_slowly_is_borne(
    pvc_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The time limit for connecting is none for sending."""
    monkeypatch.setattr("pvc.client.CONNECT_TIMEOUT_S", 0.1)
    paused = threading.Event()

    def read_slowly(exchange: Exchange) -> None:
        paused.wait(0.5)
        exchange.read_body()
        exchange.answer("200 OK", {"message": "Stored."})

    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 * MIB)
    with socket_api(read_slowly) as (url, exchanges):
        result = through(pvc_run, url, monkeypatch, "upload", "vms", "data", str(tmp_path / "large"))
    assert (result.code, result.out) == (0, "Stored.\n"), result.err
    assert exchanges[0].body_bytes == exchanges[0].length > 64 * MIB


MEASURE = """
import re, sys
from pvc.main import run
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
small, large = sys.argv[1:]
assert run(["storage", "volume", "upload", "vms", "data", small]) == 0
before = peak_kib()
assert run(["storage", "volume", "upload", "vms", "data", large]) == 0
print(peak_kib() - before)
"""


def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    for name, size in (("small", 1), ("large", 2 << 30)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)

    def take(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.answer("200 OK", {"message": "Stored."})

    with socket_api(take) as (url, exchanges):
        done = subprocess.run(
            [sys.executable, "-P", "-c", MEASURE, tmp_path / "small", tmp_path / "large"],
            env={**os.environ, "PYTHONPATH": str(CLIENT), "PVC_API_URL": url},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert exchanges[1].body_bytes == exchanges[1].length > 2 << 30
    assert int(done.stdout.split()[-1]) < 50 * 1024


def test_ctrl_c_ends_an_upload(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    stalled = threading.Event()

    def stall(exchange: Exchange) -> None:
        exchange.read_body(MIB)
        stalled.set()
        ended.wait(30)

    ended = threading.Event()
    with socket_api(stall) as (url, _):
        running = program(url, "upload", "vms", "data", str(tmp_path / "large"))
        try:
            assert stalled.wait(30)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=30)
        finally:
            ended.set()
            running.kill()
    assert running.returncode == 130
    assert err.splitlines() == [
        "error: the upload to vms/data was stopped",
        "hint: `pvc storage volume info vms data` shows what is there",
    ]


def content(data: bytes) -> Callable[[], Response]:
    return lambda: Response(data, mimetype="application/octet-stream")


def download(pvc_run: Any, *arguments: str) -> Any:
    return pvc_run("storage", "volume", "download", "vms", "data", *arguments)


def test_download_writes_holes_for_zeros(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    data = os.urandom(10_000) + bytes(8 * MIB) + os.urandom(4096) + bytes(5 * MIB - 14_096 + 17)
    api.answers[DOWNLOAD] = content(data)
    result = download(pvc_run, str(tmp_path / "image"), "--node", "hv1")
    assert (result.code, result.out) == (0, f"Wrote 13 MiB to {tmp_path}/image.\n")
    assert api.asked[0].query == {"node": ["hv1"]}
    assert (tmp_path / "image").read_bytes() == data
    assert (tmp_path / "image").stat().st_blocks * 512 < MIB
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


@pytest.mark.parametrize("sizes", [[10_000], [4096] * 3, [1, 4095, 4096, 8191, 1], [0, 100_000]])
def test_sparse_writing_keeps_every_byte(sizes: list[int]) -> None:
    pieces = [(bytes(size), b"x" * size)[number % 2] for number, size in enumerate(sizes)]
    file = io.BytesIO()
    writer = SparseWriter(file)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    assert file.getvalue().ljust(sum(sizes), b"\0") == b"".join(pieces)
    assert file.tell() == sum(sizes)


def test_download_to_standard_output(api: FakeApi, pvc_run: Any) -> None:
    data = "ä\0".encode() * 5000
    api.answers[DOWNLOAD] = content(data)
    assert download(pvc_run, "-").out == data.decode()


def test_download_to_a_terminal_is_refused(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert download(pvc_run, "-").code == EXIT_CODES["wrong-input"]
    assert api.asked == []


def test_download_replaces_a_file_only_with_force(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    api.answers[DOWNLOAD] = content(b"new")
    path = tmp_path / "image"
    path.write_text("old")
    result = download(pvc_run, str(path))
    assert (result.code, path.read_text()) == (EXIT_CODES["exists"], "old")
    assert "hint: --force" in result.err
    assert api.asked == []
    assert download(pvc_run, str(path), "--force").code == 0
    assert path.read_text() == "new"


@pytest.mark.parametrize("name", ["directory", "pipe", "none/image"])
def test_places_that_cannot_be_written(api: FakeApi, pvc_run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert download(pvc_run, str(tmp_path / name), "--force").code == EXIT_CODES["wrong-input"]
    assert api.asked == []


def test_a_full_file_system_is_said_and_leaves_nothing(
    api: FakeApi, pvc_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    api.answers[DOWNLOAD] = content(b"x" * MIB)
    monkeypatch.setattr("pvc.new_file.SparseWriter.write", full)
    result = download(pvc_run, str(tmp_path / "image"))
    assert result.code == EXIT_CODES["no-space"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (({"message": "there is no volume"}, 404), "not-found"),
        ({"message": "surprise"}, "unreachable"),
        (lambda: Response("<html>", mimetype="text/html"), "unreachable"),
    ],
)
def test_answers_that_are_no_content(
    api: FakeApi, pvc_run: Any, tmp_path: Path, answer: Any, kind: str
) -> None:
    api.answers[DOWNLOAD] = answer
    assert download(pvc_run, str(tmp_path / "image")).code == EXIT_CODES[kind]
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(
    pvc_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def half(exchange: Exchange) -> None:
        exchange.begin_download(2 * MIB)
        exchange.sock.sendall(bytes(MIB))

    with socket_api(half) as (url, _):
        result = through(pvc_run, url, monkeypatch, "download", "vms", "data", str(tmp_path / "image"))
    assert result.code == EXIT_CODES["unreachable"]
    assert f"error: the download broke off: {MIB} of {2 * MIB} bytes came" in result.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_download_and_removes_the_file(tmp_path: Path) -> None:
    def stall(exchange: Exchange) -> None:
        exchange.begin_download(8 * MIB)
        exchange.sock.sendall(bytes(4 * MIB))
        stalled.set()
        exchange.wait_for_end()

    stalled = threading.Event()
    target = tmp_path / "images" / "image"
    target.parent.mkdir()
    with socket_api(stall) as (url, _):
        running = program(url, "download", "vms", "data", str(target))
        try:
            assert stalled.wait(30)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "error: the download of vms/data was stopped"
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("quiet", [True, False])
def test_lines_when_there_is_no_terminal(
    api: FakeApi, pvc_run: Any, image: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    monkeypatch.setattr("pvc.transfer_progress.LINE_EVERY_S", 0.0)
    api.answers[UPLOAD] = {"message": "Stored."}
    options = ("-q",) if quiet else ()
    err = pvc_run(*options, "storage", "volume", "upload", "vms", "data", str(image)).err
    if quiet:
        assert err == ""
    else:
        assert re.search(r"image: 37 %, 256 KiB of 683.6 KiB, \S+ \w+/s, .* left\n", err)
        assert "waiting for the server to store it\n" in err


def test_a_bar_on_terminals(api: FakeApi, pvc_run: Any, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    api.answers[UPLOAD] = {"message": "Stored."}
    err = pvc_run("--colour", "storage", "volume", "upload", "vms", "data", str(image)).err
    assert "waiting for the server to store it" in err
    assert "683.6 KiB in" in err


def test_texts_of_progress() -> None:
    assert progress_text(1 << 30, 4 << 30, 10) == "25 %, 1 GiB of 4 GiB, 102.4 MiB/s, 30 s left"
    assert progress_text(0, 10, 0) == "0 %, 0 B of 10 B, 0 B/s, time left unknown"
    assert progress_text(0, 0, 1).startswith("100 %")
    assert end_text(1 << 30, 10) == "1 GiB in 10 s (102.4 MiB/s)"
