"""How answers, good and bad, reach the operator."""

import json
import socket
from typing import Any

import pytest
import requests
from cli_fake_api import FakeApi, Steps, html
from flask import Response

from pvc.client import ApiClient, api_path, encode_params, split_lines
from pvc.connections import Connection
from pvc.errors import EXIT_CODES, CliError, WrongInput


def test_get_is_retried(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /node"] = Steps(requests.ConnectionError("reset"), html(502), [{"name": "hv1"}])
    assert pvc_run("node", "list", "-f", "raw").out == "hv1\n"
    assert len(api.asked) == 3


def test_get_gives_up_after_three_attempts(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /node"] = ({"message": "database is away", "kind": "busy-retry"}, 503)
    result = pvc_run("node", "list")
    assert (result.code, len(api.asked)) == (EXIT_CODES["busy-retry"], 3)
    assert "error: database is away" in result.err


def test_changes_are_sent_once(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /vm/web1/state"] = requests.ConnectionError("reset")
    assert pvc_run("vm", "start", "web1").code == EXIT_CODES["unreachable"]
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        html(200),
        html(404),
        html(500),
        html(200, ""),
        lambda: Response(status=204),
        lambda: Response(status=302, headers={"Location": "https://elsewhere/"}),
    ],
)
@pytest.mark.parametrize(
    "arguments", [("vm", "list"), ("vm", "info", "web1"), ("cluster", "status"), ("cluster", "task", "b1")]
)
def test_answers_that_are_not_the_apis(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch, answer: Any, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("pvc.tasks.PATIENCE_S", -1.0)
    for route in ("/vm", "/vm/web1", "/status", "/tasks/b1"):
        api.answers[f"GET {route}"] = answer
    result = pvc_run(*arguments)
    assert result.code == EXIT_CODES["unreachable"]
    assert "Traceback" not in result.err
    assert [line.partition(":")[0] for line in result.err.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize("answer", [[], {}, None, "text", 5, [None], [[]]])
def test_json_of_an_unexpected_shape_never_gives_a_traceback(api: FakeApi, pvc_run: Any, answer: Any) -> None:
    for route in ("/vm", "/vm/web1", "/vm/web1/console", "/status", "/tasks", "/tasks/b1", "/node"):
        api.answers[f"GET {route}"] = lambda: Response(json.dumps(answer), mimetype="application/json")
    for arguments in (
        ["vm", "list"],
        ["vm", "info", "web1"],
        ["vm", "log", "web1"],
        ["cluster", "status"],
        ["cluster", "task"],
        ["cluster", "task", "b1", "--no-wait"],
        ["node", "list"],
    ):
        result = pvc_run(*arguments)
        assert "defect" not in result.err, arguments


@pytest.mark.parametrize(("status", "code"), [(400, 2), (401, 6), (403, 6), (404, 3), (500, 1)])
def test_plain_messages_get_a_kind_from_the_status(
    api: FakeApi, pvc_run: Any, status: int, code: int
) -> None:
    api.answers["DELETE /vm/web1"] = ({"message": "no"}, status)
    result = pvc_run("vm", "remove", "web1", "-y")
    assert result.code == code
    assert result.err.startswith("error: no\n")


def test_a_message_that_is_an_object_is_a_list_of_problems(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /vm/web1/state"] = ({"message": {"state": "bad state", "force": "no boolean"}}, 400)
    lines = pvc_run("vm", "start", "web1").err.splitlines()
    assert "  state: bad state" in lines and "  force: no boolean" in lines


def test_names_are_quoted_whole(api: FakeApi, pvc_run: Any) -> None:
    pvc_run("vm", "remove", "a/b c#d?e=%ü", "-y")
    assert api.asked[0].raw_path == "/api/v1/vm/a%2Fb%20c%23d%3Fe%3D%25%C3%BC"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_would_change_the_path_are_refused(name: str) -> None:
    with pytest.raises(WrongInput):
        api_path(["vm", name])


def test_headers(api: FakeApi, pvc_run: Any) -> None:
    pvc_run("vm", "list")
    headers = api.asked[0].headers
    assert headers["X-Api-Key"] == "k3y"
    assert headers["User-Agent"].startswith("pvc-client-cli/")


def test_debug_shows_the_request_but_no_key(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /vm"] = []
    result = pvc_run("-v", "vm", "list")
    assert "GET http://api.test:7370/api/v1/vm?negate=False: 200" in result.err
    assert "k3y" not in result.err


def test_params_on_the_wire() -> None:
    params = {"a": None, "b": True, "c": ["x", "y"], "d": 3, "e": [], "f": ""}
    assert encode_params(params) == [("b", "True"), ("c", "x"), ("c", "y"), ("d", "3"), ("f", "")]


def test_lines_do_not_depend_on_chunks() -> None:
    assert list(split_lines(iter([b"a\r", b"\nb", b"c\n\n", b"d"]))) == [b"a", b"bc", b""]


def test_refused_connection_says_why() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    client = ApiClient(Connection("x", "", "127.0.0.1", port, "http"))
    with pytest.raises(CliError) as caught:
        client.get("vm")
    assert caught.value.kind == "unreachable"
    assert str(caught.value).endswith("Connection refused")
    assert "is the API running" in caught.value.hint


def test_a_list_that_is_not_found_is_empty(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /vm"] = ({"message": "No VM found."}, 404)
    result = pvc_run("vm", "list")
    assert (result.code, result.out, result.err) == (0, "", "no VMs\n")
    assert pvc_run("vm", "list", "--json").out == "[]\n"


def test_an_unexpected_exception_is_one_line(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /vm"] = ZeroDivisionError("oh")
    result = pvc_run("vm", "list")
    assert result.code == 1
    assert result.err.splitlines()[0].startswith("error: defect in pvc")
