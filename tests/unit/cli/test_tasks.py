"""`pvc cluster task` and its id-or-command group."""

import json
from typing import Any

import pytest
from cli_fake_api import ACCEPTED, FakeApi, Steps, event_stream, log_event, task

from pvc.errors import EXIT_CODES
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


def test_retry_follows_the_new_build(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /tasks/b0/retry"] = ACCEPTED
    api.answers["GET /tasks/b1/log"] = event_stream(("log", log_event(1, "one")), ("end", task()))
    result = pvc_run("cluster", "task", "retry", "b0", "-a", "password=s3=cret", "-a", "key=x")
    assert (result.code, result.out) == (0, "SUCCESS: VM web1 is ready\n")
    assert "[install] one" in result.err
    (asked,) = api.requests_to("POST /tasks/b0/retry")
    # Not in the URL: they are secrets.
    assert (asked.query, asked.form) == ({}, {"arg": ["password=s3=cret", "key=x"]})


def test_retry_without_waiting(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /tasks/b0/retry"] = ACCEPTED
    result = pvc_run("cluster", "task", "retry", "b0", "--no-wait")
    assert (result.code, result.out) == (0, "Task ID: b1 assigned to node hv1\n")
    assert json.loads(pvc_run("cluster", "task", "retry", "b0", "--no-wait", "--json").out)["task_id"] == "b1"
    assert pvc_run("cluster", "task", "retry", "b0", "-a", "password").code == EXIT_CODES["wrong-input"]
    assert len(api.asked) == 2


def test_retry_that_fails_has_the_builds_exit_code(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /tasks/b0/retry"] = ACCEPTED
    error = {"kind": "no-space", "what": "create volume", "why": "full", "hint": "", "stage": "create"}
    api.answers["GET /tasks/b1/log"] = event_stream(("end", task("FAILURE", error=error)))
    assert pvc_run("cluster", "task", "retry", "b0").code == EXIT_CODES["no-space"]


def test_discard(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /tasks/b1/discard"] = {"message": "Removed the volumes vms/web1_sda."}
    result = pvc_run("cluster", "task", "discard", "b1", "-y")
    assert (result.code, result.out) == (0, "Removed the volumes vms/web1_sda.\n")
    assert len(api.asked) == 1


def test_discard_asks_by_name(api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))
    api.answers["GET /tasks/b1"] = task("FAILURE", kept_volumes=["vms/web1_sda", "vms/web1_sdb"])
    assert pvc_run("cluster", "task", "discard", "b1").code == EXIT_CODES["declined"]
    assert asked == ["Delete vms/web1_sda, vms/web1_sdb of build b1?"]
    assert [one.method for one in api.asked] == ["GET"]


@pytest.mark.parametrize("build_state", ["failed", "cancelled"])
def test_kept_volumes_are_listed(api: FakeApi, pvc_run: Any, build_state: str) -> None:
    error = {"kind": "environment", "what": "run mkfs", "why": "exited 1", "hint": "", "stage": "prepare"}
    kept = ["vms/web1_sda", "vms/web1_sdb"]
    failed = task("FAILURE", build_state=build_state, error=error, kept_volumes=kept)
    api.answers["GET /tasks/b1/log"] = event_stream(("end", failed))
    api.answers["GET /tasks/b1"] = failed
    hint = "kept volumes: vms/web1_sda, vms/web1_sdb; `pvc cluster task discard b1` deletes them"
    assert hint in pvc_run("cluster", "task", "b1").err
    assert "vms/web1_sda, vms/web1_sdb" in pvc_run("cluster", "task", "b1", "--no-wait").out


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
