"""`pvc cluster task` and its id-or-command group."""

import json
from typing import Any

import pytest
from cli_fake_api import FakeApi, Steps, event_stream, log_event, task

from pvc.progress import percent_of
from pvc.tasks import parse_events

UNKNOWN = {
    "id": "nope",
    "state": "FAILURE",
    "build_state": None,
    "current": 0,
    "total": 1,
    "status": "no task has the id nope",
    "error": {"kind": "not-found", "what": "no task has the id nope", "why": "", "hint": ""},
}


def test_an_id_is_followed(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /tasks/b1/log"] = event_stream(("log", log_event(1, "one")), ("end", task()))
    result = pvc_run("cluster", "task", "b1")
    assert (result.code, result.out) == (0, "SUCCESS: VM web1 is ready\n")


@pytest.mark.parametrize("arguments", [["b1", "--no-wait"], ["--no-wait", "b1"]])
def test_no_wait_shows_the_state(api: FakeApi, pvc_run: Any, arguments: list[str]) -> None:
    api.answers["GET /tasks/b1"] = task("RUNNING")
    result = pvc_run("cluster", "task", *arguments)
    assert result.code == 0
    assert "running" in result.out and "web1" in result.out and "30 %" in result.out


@pytest.mark.parametrize("arguments", [["b1", "--no-wait", "--json"], ["--json", "b1", "--no-wait"]])
def test_json_before_or_after_the_id(api: FakeApi, pvc_run: Any, arguments: list[str]) -> None:
    api.answers["GET /tasks/b1"] = task("RUNNING")
    assert json.loads(pvc_run("cluster", "task", *arguments).out)["id"] == "b1"


@pytest.mark.parametrize("arguments", [["nope"], ["nope", "--no-wait"], ["log", "nope"]])
def test_unknown_id(api: FakeApi, pvc_run: Any, arguments: list[str]) -> None:
    api.answers["GET /tasks/nope"] = UNKNOWN
    result = pvc_run("cluster", "task", *arguments)
    assert result.code == 3
    assert "error: no task has the id nope" in result.err


def test_list_of_builds(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /tasks"] = {"builds": [task("RUNNING", id="b2"), task(id="b1")]}
    assert pvc_run("cluster", "task", "-f", "raw").out == "b2\nb1\n"
    assert pvc_run("cluster", "task", "--active", "-f", "raw").out == "b2\n"
    assert "debian12" in pvc_run("cluster", "task").out
    assert api.asked[0].query == {"history": ["True"], "limit": ["20"]}


def test_list_on_a_server_without_history(api: FakeApi, pvc_run: Any) -> None:
    kwargs = {"vm_name": "web1", "profile_name": "p", "run_on": "hv1"}
    entry = {"id": "x1", "name": "provisioner.create", "args": [], "kwargs": kwargs}
    api.answers["GET /tasks"] = {"active": {"w@hv1": [entry]}, "reserved": None, "scheduled": {}}
    (row,) = json.loads(pvc_run("cluster", "task", "--json").out)
    assert (row["id"], row["vm"], row["node"], row["state"]) == ("x1", "web1", "hv1", "RUNNING")


def test_cancel(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /tasks/b1/cancel"] = {"message": "Build b1 is being cancelled"}
    result = pvc_run("cluster", "task", "cancel", "b1")
    assert (result.code, result.out) == (0, "Build b1 is being cancelled\n")


def test_log_prints_stored_lines(api: FakeApi, pvc_run: Any) -> None:
    events = [log_event(1, "one"), log_event(2, "two"), log_event(3, "three", level="error")]
    api.answers["GET /tasks/b1/log"] = {"id": "b1", "state": "RUNNING", "events": events}
    assert (
        pvc_run("cluster", "task", "log", "b1").out
        == "[install] one\n[install] two\n[install] error: three\n"
    )
    assert pvc_run("cluster", "task", "log", "b1", "-l", "1").out == "[install] error: three\n"
    assert api.asked[-1].query == {"lines": ["1"]}
    lines = pvc_run("cluster", "task", "log", "b1", "--json").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]


def test_a_long_log_is_fetched_page_by_page(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvc.tasks.LOG_PAGE", 2)
    pages = [[log_event(1, "a"), log_event(2, "b")], [log_event(3, "c"), log_event(4, "d")], []]
    api.answers["GET /tasks/b1/log"] = Steps(*({"events": page} for page in pages))
    assert len(pvc_run("cluster", "task", "log", "b1").out.splitlines()) == 4
    assert [asked.query["after"] for asked in api.asked] == [["0"], ["2"], ["4"]]


def test_log_follows_to_the_end(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /tasks/b1/log"] = Steps(
        {"events": [log_event(1, "a")]}, {"events": []}, {"events": [log_event(2, "b")]}
    )
    api.answers["GET /tasks/b1"] = Steps(task("RUNNING"), task())
    assert pvc_run("cluster", "task", "log", "-f", "b1").out == "[install] a\n[install] b\n"


@pytest.mark.parametrize(
    ("changes", "percent"),
    [
        ({"current": 0, "percent": None}, 0),
        ({"current": 5, "total": 10, "percent": 50}, 55),
        ({"current": 11, "percent": None}, 100),
        ({"current": 1, "total": 1}, None),
    ],
)
def test_progress_of_the_whole_build(changes: dict[str, Any], percent: float | None) -> None:
    assert percent_of(task("RUNNING", **changes)) == percent


def test_events_are_parsed_as_the_standard_says() -> None:
    lines = b': comment\nevent: log\nid: 1\ndata: {"a":\ndata: 1}\n\ndata:2\n\nevent: end\ndata: not json\n\n'
    events = list(parse_events(iter(lines.splitlines())))
    assert [(event.name, event.data) for event in events] == [("log", {"a": 1}), ("message", 2)]
