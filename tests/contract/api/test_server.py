"""The programs: `pvc-api serve`, `migrate`, `token`, as processes."""

import http.client
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import Served, free_port, serving, start
from sqlalchemy import text

from pvccommon import tokens
from pvccommon.database import Database
from pvccommon.models import Build, BuildState

Configure = Callable[..., Path]


@pytest.fixture
def configure(settings: dict[str, Any], tmp_path: Path) -> Configure:
    """Write a configuration file; sections given replace the usual ones."""

    def write(**sections: Any) -> Path:
        path = tmp_path / "pvc.conf"
        path.write_text(yaml.safe_dump({**settings, **sections}))
        return path

    return write


def call(*arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.5)


@pytest.fixture
def server(configure: Configure, database: Database, empty: None) -> Iterator[Served]:
    port = free_port()
    with serving(configure(api={"listen": {"port": port}, "workers": 1, "threads": 4}), port) as served:
        yield served


@pytest.fixture
def token(database: Database, empty: None) -> str:
    with database.session() as session:
        return tokens.create_token(session, "tester", "admin")


def test_answers_and_logs_without_query_strings(server: Served, token: str) -> None:
    assert server.get("/api/v1/", token)[0] == 200
    assert server.get("/api/v1/tasks", token) == (200, {"active": {}, "reserved": {}, "scheduled": {}})
    assert server.get("/api/v1/tasks")[0] == 401
    assert server.get("/api/v1/provisioner/profile?limit=very-secret", token)[0] == 404
    assert server.get("/api/v1/x%0Aforged", token)[0] == 400
    assert server.stop() < 10
    assert server.process.returncode == 0
    assert "/api/v1/provisioner/profile" in server.output
    assert "very-secret" not in server.output
    assert token not in server.output
    assert "\nforged" not in server.output


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /api/v1/?x=" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 90_000 + b"\r\n\r\n",
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/tasks HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_requests_are_answered_in_json(server: Served, data: bytes) -> None:
    head, _, body = server.raw(data).partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))
    assert isinstance(json.loads(body)["message"], str)


def test_a_malformed_body_is_answered_in_json(server: Served, token: str) -> None:
    head = f"POST /api/v1/provisioner/userdata HTTP/1.1\r\nConnection: close\r\nX-Api-Key: {token}\r\n"
    request = f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    answer, _, body = server.raw(request.encode()).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert "body" in json.loads(body)["message"]


def test_a_term_signal_does_not_wait_for_followed_builds(
    server: Served, token: str, database: Database
) -> None:
    with database.session() as session:
        build = Build(
            vm="web1", profile="p", node="hv1", memory_mib=1, plan={}, state=BuildState.RUNNING.value
        )
        session.add(build)
        session.flush()
        task = build.id
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        connection.request("GET", f"/api/v1/tasks/{task}/log?follow=true", headers={"X-Api-Key": token})
        answer = connection.getresponse()
        assert answer.getheader("Content-Type", "").startswith("text/event-stream")
        assert answer.readline() == b"retry: 1000\n"
        while not answer.readline().startswith(b"event: state"):
            pass
        assert server.stop() < 8
        assert b"event: error" in answer.read()


def test_followers_do_not_occupy_all_threads(server: Served, token: str, database: Database) -> None:
    with database.session() as session:
        build = Build(
            vm="web1", profile="p", node="hv1", memory_mib=1, plan={}, state=BuildState.RUNNING.value
        )
        session.add(build)
        session.flush()
        path = f"/api/v1/tasks/{build.id}/log"
    with ExitStack() as connections:
        statuses = []
        for _ in range(8):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            connections.enter_context(closing(connection))
            connection.request("GET", f"{path}?follow=true", headers={"X-Api-Key": token})
            statuses.append(connection.getresponse().status)
        assert statuses == [200] + [503] * 7  # of four threads
        assert server.get(path, token)[0] == 200
    # The place of one who has gone is free again, at the latest when the server next speaks.
    wait_for(lambda: followed(server, path, token) == 200, "a place", 25)


def followed(server: Served, path: str, token: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        connection.request("GET", f"{path}?follow=true", headers={"X-Api-Key": token})
        return connection.getresponse().status


def test_tls(configure: Configure, database: Database, empty: None, tmp_path: Path) -> None:
    certificate, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()
    subject = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate), "-days", "1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject],
        check=True,
        capture_output=True,
    )
    api = {
        "listen": {"port": port},
        "workers": 1,
        "ssl": {"enabled": True, "certificate": str(certificate), "key": str(key)},
    }
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        serving(configure(api=api), port) as served,
        closing(http.client.HTTPSConnection("localhost", port, timeout=20, context=context)) as connection,
    ):
        connection.request("GET", "/api/v1/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert "Strict-Transport-Security" in answer.headers
        answer.read()
        served.stop()


def test_an_unmigrated_database_is_refused_until_migrated(
    configure: Configure, database: Database, settings: Any
) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS fresh"))
        connection.execute(text("CREATE DATABASE fresh"))
    path = str(
        configure(database={**settings["database"], "name": "fresh"}, api={"listen": {"port": free_port()}})
    )
    code, _, stderr = call("serve", "--config", path)
    assert code == 1
    assert stderr.count("\n") == 1
    assert "pvc-api migrate" in stderr
    assert call("migrate", "--config", path)[0] == 0
    assert call("--config", path, "migrate")[0] == 0
    code, first, _ = call("token", "create", "me", "--role", "viewer", "--config", path)
    assert code == 0
    assert first.startswith("pvc_")
    code, _, stderr = call("token", "create", "me", "--role", "viewer", "--config", path)
    assert (code, stderr.count("\n")) == (1, 1)
    code, listed, _ = call("token", "list", "--config", path)
    assert listed.split("\t")[:2] == ["me", "viewer"]
    assert first.strip() not in listed
    assert call("token", "delete", "me", "--config", path)[0] == 0
    assert call("token", "delete", "me", "--config", path)[0] == 1
    assert call("token", "list", "--config", path)[1] == ""


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"api": {"listen": {"address": "0.0.0.0"}, "authentication": {"enabled": False}}}, "loopback"),
        (
            {"api": {"listen": {"address": "192.0.2.1"}, "authentication": {"anonymous_role": "viewer"}}},
            "loopback",
        ),
        ({"apy": {}}, "apy"),
        ({"database": {"port": 1, "password_file": "/nonexistent"}}, "/nonexistent"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(configure: Configure, sections: Any, words: str) -> None:
    code, stdout, stderr = call("serve", "--config", str(configure(**sections)))
    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert words in stderr


def test_wrong_usage() -> None:
    assert call("explode")[0] == 2
    assert call("token", "create", "x", "--role", "king")[0] == 2
    assert call("serve", "--config", "/nonexistent")[0] == 1
