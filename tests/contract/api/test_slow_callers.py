"""Callers that send slowly, or stop: others are served, and they are given up in time. On real sockets."""

import json
import random
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from api_server import Served, free_port, serving

from pvcapid.connections import Waiting, awaited_bytes
from pvccommon import tokens
from pvccommon.database import Database
from pvccommon.storage.directory import DirectoryPool

SHORTER = """
from pvcapid import connections, late_body, volume_content
connections.REQUEST_S = 1.5
connections.END_IDLE_S = 1.0
late_body.IDLE_S, late_body.WHOLE_S = 1.0, 2.0
volume_content.IDLE_S = 2.0
"""
LINE = "GET /api/v1/ HTTP/1.1\r\nHost: x\r\n"
JSON = "Content-Type: application/json\r\n"
MULTIPART = "Content-Type: multipart/form-data; boundary=BB\r\n"
PART = b'--BB\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
UPLOAD = "/api/v1/storage/ceph/volume/vms/{}/upload?image_format=raw&file_size={}"


@pytest.fixture
def token(database: Database, empty: None) -> str:
    with database.session() as session:
        return tokens.create_token(session, "tester", "admin")


@pytest.fixture
def configuration(settings: dict[str, Any], tmp_path: Path) -> Callable[..., tuple[Path, int]]:
    def write(**api: Any) -> tuple[Path, int]:
        path, port = tmp_path / "pvc.conf", free_port()
        path.write_text(yaml.safe_dump({**settings, "api": {"listen": {"port": port}, "workers": 1, **api}}))
        return path, port

    return write


@pytest.fixture
def server(configuration: Callable[..., tuple[Path, int]], database: Database) -> Iterator[Served]:
    """Of eight threads; its limits are seconds."""
    with serving(*configuration(threads=8), before=SHORTER) as served:
        yield served


@pytest.fixture
def connected(server: Served) -> Iterator[Callable[[bytes], socket.socket]]:
    """Connect, and send something."""
    with ExitStack() as connections:

        def connect(data: bytes) -> socket.socket:
            found = connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=8))
            found.sendall(data)
            return found

        yield connect


def posted(path: str, token: str, length: int, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {token}\r\nContent-Length: {length}\r\n"
    return f"{head}{headers or JSON}\r\n".encode()


def answer_of(connection: socket.socket) -> tuple[int, Any]:
    """All that comes until the server closes."""
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def require_prompt(server: Served, token: str) -> None:
    begun = time.monotonic()
    assert server.get("/api/v1/", token)[0] == 200
    assert server.get("/api/v1/tasks", token)[0] == 200
    assert time.monotonic() - begun < 2


def test_unfinished_headers(server: Served, token: str, connected: Any) -> None:
    begun = time.monotonic()
    unfinished = [connected(LINE.encode()) for _ in range(100)]
    silent = [connected(b"") for _ in range(20)]
    require_prompt(server, token)
    assert [answer_of(connection)[0] for connection in unfinished] == [408] * 100
    assert [connection.recv(1) for connection in silent] == [b""] * 20
    assert 1 < time.monotonic() - begun < 4


def test_a_header_that_drips_is_ended_all_the_same(server: Served, connected: Any) -> None:
    connection, begun = connected(b"GET /"), time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - begun < 5:
            connection.sendall(b"a")
            time.sleep(0.1)
    assert time.monotonic() - begun < 4


def test_the_oldest_make_room(server: Served, token: str, connected: Any) -> None:
    unfinished = [connected(LINE.encode()) for _ in range(450)]
    require_prompt(server, token)
    unfinished[0].settimeout(0.5)
    assert unfinished[0].recv(1) == b""


@pytest.mark.parametrize(("length", "status"), [(100, 408), (100_000, 408)])
def test_unfinished_bodies(server: Served, token: str, connected: Any, length: int, status: int) -> None:
    begun = time.monotonic()
    unfinished = [connected(posted("/api/v1/provisioner/userdata", token, length) + b"{") for _ in range(30)]
    require_prompt(server, token)
    statuses = [answer_of(connection)[0] for connection in unfinished]
    assert set(statuses) <= {status, 503}
    assert status in statuses
    assert time.monotonic() - begun < 5


def test_callers_without_a_token_are_refused_before_their_body(server: Served, connected: Any) -> None:
    refused = [connected(posted("/api/v1/provisioner/userdata", "wrong", 100_000) + b"{") for _ in range(30)]
    begun = time.monotonic()
    assert [answer_of(connection)[0] for connection in refused] == [401] * 30
    assert time.monotonic() - begun < 2


def test_stalled_uploads(server: Served, token: str, connected: Any, pool: DirectoryPool) -> None:
    begun = time.monotonic()
    stalled = [
        connected(posted(UPLOAD.format(f"up{number}", 10**6), token, 10**6 + 90, MULTIPART) + PART + b"abc")
        for number in range(12)
    ]
    require_prompt(server, token)
    answers = [answer_of(connection) for connection in stalled]
    statuses = [status for status, _ in answers]
    assert statuses.count(503) >= 8  # of eight threads
    assert statuses.count(400) == 12 - statuses.count(503) > 0
    assert any("too long" in answer["message"] for _, answer in answers)
    assert all(answer["kind"] == "busy-retry" for status, answer in answers if status == 503)
    assert time.monotonic() - begun < 5
    assert not list(pool.path.glob("volumes/*"))


def test_a_refused_upload_is_answered_at_once(server: Served, token: str, connected: Any) -> None:
    begun = time.monotonic()
    connection = connected(posted(UPLOAD.format("x", 10**8), token, 10**8, MULTIPART) + PART)
    assert answer_of(connection)[0] == 400
    assert time.monotonic() - begun < 1


def test_clients_that_send_everything_first_see_why_they_are_refused(server: Served, token: str) -> None:
    data = bytes(30 * 1024**2)
    url = f"http://127.0.0.1:{server.port}{UPLOAD.format('x', len(data))}"
    answer = requests.post(url, files={"file": data}, headers={"X-Api-Key": token}, timeout=8)
    assert (answer.status_code, answer.json()["kind"]) == (400, "not-found")


def test_legacy_clients_upload(server: Served, token: str, pool: DirectoryPool) -> None:
    data = random.Random(5).randbytes(3 * 1024**2)
    with requests.Session() as session:
        session.headers["X-Api-Key"] = token
        for name, content in (("large", data), ("small", data[:512])):
            url = f"http://127.0.0.1:{server.port}{UPLOAD.format(name, len(content))}"
            assert session.post(url, files={"file": content}, timeout=8).status_code == 200
            assert b"".join(pool.export_stream(name)) == content
            loaded = session.get(url.partition("/upload")[0] + "/download", timeout=8)
            assert loaded.content == content


def test_connections_are_kept(server: Served, token: str, connected: Any) -> None:
    """Also after a refusal whose body had come, and for requests that come in one piece."""
    refused = posted("/api/v1/provisioner/userdata", "wrong", 9) + b'{"a": 12}'
    last = LINE.replace("x\r\n", "x\r\nConnection: close\r\n") + "\r\n"
    connection = connected(refused + f"{LINE}\r\n{last}".encode())
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    assert [part[:4] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"401 ", b"200 ", b"200 "]


def test_a_caller_that_expects_an_answer_before_its_body(server: Served, token: str, connected: Any) -> None:
    head = posted(
        "/api/v1/provisioner/userdata",
        token,
        2,
        "Expect: 100-continue\r\nContent-Type: application/json\r\n",
    )
    connection = connected(head)
    assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
    connection.sendall(b"{}")
    assert answer_of(connection)[0] == 400


def test_a_body_in_chunks_that_breaks_off(server: Served, token: str, connected: Any) -> None:
    head = f"POST /api/v1/provisioner/userdata HTTP/1.1\r\nHost: x\r\nX-Api-Key: {token}\r\n{JSON}"
    connection = connected(f"{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}".encode())
    connection.shutdown(socket.SHUT_WR)
    begun = time.monotonic()
    assert answer_of(connection)[0] == 400
    assert time.monotonic() - begun < 1


def test_tls(configuration: Any, database: Database, token: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
        "-days",
        "1",
    ]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject],
        check=True,
        capture_output=True,
    )
    path, port = configuration(
        ssl={"enabled": True, "certificate": str(certificate), "key": str(key)}, threads=4
    )
    with serving(path, port, before=SHORTER), ExitStack() as connections:
        context = ssl.create_default_context(cafile=str(certificate))
        for number in range(30):
            connection = socket.create_connection(("127.0.0.1", port), timeout=8)
            connections.enter_context(closing(connection))
            if number % 3 == 0:
                connection.sendall(b"\x16\x03\x01")  # a handshake begins
            elif number % 3 == 1:
                secure = context.wrap_socket(connection, server_hostname="localhost")
                connections.enter_context(closing(secure))
                secure.sendall(LINE.encode())
        begun = time.monotonic()
        with requests.Session() as session:
            session.verify, session.trust_env = str(certificate), False
            for _ in range(3):
                assert session.get(f"https://localhost:{port}/api/v1/", timeout=8).status_code == 200
            body = {"name": "x", "data": "a" * 300_000}
            url = f"https://localhost:{port}/api/v1/provisioner/userdata"
            answer = session.post(url, json=body, headers={"X-Api-Key": token}, timeout=8)
            assert answer.status_code == 200, answer.text
            assert session.post(url, json=body, timeout=8).status_code == 401
        assert time.monotonic() - begun < 2
        assert answer_of(secure)[0] == 408


@pytest.mark.parametrize(
    ("header", "awaited"),
    [
        ("", 0),
        ("Content-Length: 7\r\n", 7),
        ("content-length:7 \r\n", 7),
        ("Content-Length: 65537\r\n", 0),
        ("Content-Length: 7\r\nContent-Length: 9\r\n", 0),
        ("Content-Length: 7\r\nExpect: 100-continue\r\n", 0),
        ("Transfer-Encoding: chunked\r\n", 0),
        ("X-Content-Length: 7\r\n", 0),
        ("Content-Length: -7\r\n", 0),
    ],
)
def test_what_is_awaited(header: str, awaited: int) -> None:
    assert awaited_bytes(f"POST / HTTP/1.1\r\n{header}\r\n".encode()) == awaited


def test_a_request_is_complete_with_its_last_byte() -> None:
    data, waiting = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", Waiting(None, 0)
    for number, byte in enumerate(data, start=1):
        waiting.received.append(byte)
        assert waiting.is_complete() == (number == len(data))
