"""The connection store, the cluster configuration behind `local`, and the environment."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import FakeApi

from pvc.connections import connection_from_config, connection_from_url, store_path, verify_tls
from pvc.errors import CliError

ADD = ("connection", "add", "east", "-a", "10.0.0.1", "-k", "secret-key", "-d", "East")


def test_add_list_remove(pvc_run: Any, tmp_path: Path) -> None:
    assert pvc_run(*ADD, "--ssl", "-p", "7371").code == 0
    store = tmp_path / "client" / "pvc.json"
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert json.loads(store.read_text()) == {
        "east": {
            "description": "East",
            "host": "10.0.0.1",
            "port": 7371,
            "scheme": "https",
            "api_key": "secret-key",
        }
    }
    assert "east" in pvc_run("connection", "list", "-f", "raw").out
    assert pvc_run("connection", "remove", "east", "-y").code == 0
    assert pvc_run("connection", "remove", "east", "-y").code == 3


def test_keys_are_shown_only_when_asked_for(pvc_run: Any) -> None:
    pvc_run(*ADD)
    assert "secret-key" not in pvc_run("connection", "list").out
    assert "secret-key" not in pvc_run("connection", "list", "--json").out
    assert "secret-key" in pvc_run("connection", "list", "-k").out


def test_a_store_left_open_is_closed_by_the_next_write(pvc_run: Any, tmp_path: Path) -> None:
    store = tmp_path / "client" / "pvc.json"
    store.parent.mkdir()
    store.write_text("{}")
    store.chmod(0o644)
    pvc_run(*ADD)
    assert stat.S_IMODE(store.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_garbled_store_is_one_clear_error(pvc_run: Any, tmp_path: Path, text: str) -> None:
    store = tmp_path / "client" / "pvc.json"
    store.parent.mkdir()
    store.write_text(text)
    result = pvc_run("connection", "list")
    assert result.code == 10
    assert "cannot understand the connection store" in result.err


def test_a_named_connection_beats_the_environment_url(api: FakeApi, pvc_run: Any) -> None:
    pvc_run(*ADD)
    api.answers["GET /vm"] = []
    pvc_run("-c", "east", "vm", "list")
    assert api.asked[-1].headers["X-Api-Key"] == "secret-key"
    pvc_run("vm", "list")
    assert api.asked[-1].headers["X-Api-Key"] == "k3y"


def test_pvc_connection_names_one_when_there_is_no_url(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pvc_run(*ADD)
    monkeypatch.delenv("PVC_API_URL")
    monkeypatch.setenv("PVC_CONNECTION", "east")
    pvc_run("vm", "list")
    assert api.asked[-1].headers["Host" if "Host" in api.asked[-1].headers else "X-Api-Key"]
    assert api.asked[-1].headers["X-Api-Key"] == "secret-key"


def test_an_unknown_connection(pvc_run: Any) -> None:
    result = pvc_run("-c", "west", "vm", "list")
    assert result.code == 3
    assert "known are: local" in result.err


def test_detail_asks_every_connection(api: FakeApi, pvc_run: Any) -> None:
    pvc_run(*ADD)
    api.answers["GET /status"] = {
        "cluster_name": "c1",
        "cluster_health": {"health": 90},
        "nodes": {"total": 1},
    }
    rows = {row["name"]: row for row in json.loads(pvc_run("connection", "detail", "--json").out)}
    assert (rows["east"]["cluster_name"], rows["east"]["health"]) == ("c1", 90)
    assert "cannot read the cluster configuration" in rows["local"]["problem"]


def test_local_comes_from_the_cluster_configuration(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    config = tmp_path / "pvc.conf"
    config.write_text(
        "api:\n  listen: {address: 0.0.0.0, port: 7444}\n  ssl: {enabled: true}\n"
        f"  authentication: {{enabled: true, token_file: {tmp_path / 'token'}}}\n"
    )
    connection = connection_from_config(str(config))
    assert (connection.url, connection.api_key, connection.verify) == (
        "https://127.0.0.1:7444",
        "t0ken",
        False,
    )
    monkeypatch.delenv("PVC_API_URL")
    monkeypatch.setenv("PVC_CONFIG", str(config))
    pvc_run("vm", "list")
    assert api.asked[-1].headers["X-Api-Key"] == "t0ken"


def test_local_reads_tokens_of_older_configurations(tmp_path: Path) -> None:
    config = tmp_path / "pvc.conf"
    config.write_text(
        "api: {listen: {address: '::', port: 1}, authentication: {source: token}, token: [{token: old}]}"
    )
    connection = connection_from_config(str(config))
    assert (connection.url, connection.api_key) == ("http://[::1]:1", "old")


def test_local_without_configuration_says_what_to_do(pvc_run: Any, tmp_path: Path) -> None:
    result = pvc_run("-c", "local", "--config", str(tmp_path / "none"), "vm", "list")
    assert result.code == 10
    assert "pvc connection add" in result.err


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:1", "http://h:1"),
        ("https://h", "https://h:443"),
        ("h:7000", "http://h:7000"),
        ("http://h", "http://h:7370"),
        ("http://h:1/api/v1/", "http://h:1"),
        ("http://[::1]:2", "http://[::1]:2"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert connection_from_url(text, "").url == url


@pytest.mark.parametrize("text", ["ftp://h", "http://", "http://h:x", "http://h/other"])
def test_bad_urls(text: str) -> None:
    with pytest.raises(CliError):
        connection_from_url(text, "")


def test_store_path() -> None:
    assert store_path({"PVC_CLIENT_DIR": "/d"}) == Path("/d/pvc.json")
    assert store_path({"HOME": "/h"}) == Path("/h/.config/pvc/pvc.json")
    assert store_path({}).name == "pvc.json"


@pytest.mark.parametrize(
    ("value", "verified"), [("True", True), ("true", True), ("False", False), ("0", False)]
)
def test_verification(value: str, verified: bool) -> None:
    assert verify_tls({"PVC_CLIENT_VERIFY_SSL": value}) is verified
    assert verify_tls({}) is True
