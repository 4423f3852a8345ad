"""`provisioner create` and `plan`: progress, exit codes, what travels where."""

import json
from typing import Any

import pytest
import requests
from cli_fake_api import ACCEPTED, FakeApi, Steps, event_stream, html, log_event, task

from pvc.errors import EXIT_CODES

CREATE = ("provisioner", "create", "web1", "debian12")
LOG = "GET /tasks/b1/log"
TASK = "GET /tasks/b1"


@pytest.fixture(autouse=True)
def accepted(api: FakeApi) -> None:
    api.answers["POST /provisioner/create"] = ACCEPTED


def test_success_streams_the_log_and_exits_0(api: FakeApi, pvc_run: Any) -> None:
    api.answers[LOG] = event_stream(
        ("state", task("RUNNING", stage="setup", status="setting up")),
        ("log", log_event(1, "hello\x1b[31m red", "setup")),
        ("state", task("RUNNING", status="installing")),
        ("log", log_event(2, "it broke a little", level="warning")),
        ("end", task()),
    )
    result = pvc_run(*CREATE)
    assert (result.code, result.out) == (0, "SUCCESS: VM web1 is ready\n")
    assert "[setup] hello red\n" in result.err
    assert "[install] warning: it broke a little\n" in result.err
    assert "[setup] took" in result.err
    assert not api.requests_to(TASK)


@pytest.mark.parametrize("kind", sorted(EXIT_CODES))
def test_failure_gives_the_kinds_exit_code(api: FakeApi, pvc_run: Any, kind: str) -> None:
    error = {
        "kind": kind,
        "what": "run mmdebstrap",
        "why": "exited 1",
        "hint": "try again",
        "stage": "install",
    }
    api.answers[LOG] = event_stream(("end", task("FAILURE", error=error, status="broken")))
    result = pvc_run(*CREATE)
    assert result.code == EXIT_CODES[kind] != 0
    assert result.out == ""
    assert result.err.splitlines()[-2:] == [
        "error: the build of web1 failed in stage install: run mmdebstrap: exited 1",
        "hint: try again; `pvc cluster task log b1` prints the full log",
    ]


def test_failure_without_error_object_still_fails(api: FakeApi, pvc_run: Any) -> None:
    api.answers[TASK] = {"state": "FAILURE", "current": 1, "total": 1, "status": "boom"}
    result = pvc_run(*CREATE)
    assert result.code == 1
    assert "error: task b1 failed: boom" in result.err


def test_cancelled_build(api: FakeApi, pvc_run: Any) -> None:
    error = {
        "kind": "cancelled",
        "what": "cancelled by an operator",
        "why": "",
        "hint": "",
        "stage": "prepare",
    }
    api.answers[LOG] = event_stream(("end", task("FAILURE", build_state="cancelled", error=error)))
    result = pvc_run(*CREATE)
    assert result.code == EXIT_CODES["cancelled"]
    assert "error: the build of web1 was cancelled in stage prepare" in result.err


def test_polls_when_there_is_no_stream(api: FakeApi, pvc_run: Any) -> None:
    api.answers[LOG] = Steps(
        html(404), {"events": [log_event(1, "one")]}, {"events": [log_event(2, "two")]}, {"events": []}
    )
    api.answers[TASK] = Steps(task("PENDING"), task("RUNNING"), task())
    result = pvc_run(*CREATE)
    assert result.code == 0
    assert result.err.index("] one") < result.err.index("] two")
    assert [asked.query.get("after") for asked in api.requests_to(LOG)[1:]] == [["0"], ["1"], ["2"]]


def test_polls_a_server_that_knows_only_the_contract(api: FakeApi, pvc_run: Any) -> None:
    api.answers[TASK] = Steps(
        {"state": "PENDING", "current": 0, "total": 1, "status": "Pending"},
        {"state": "RUNNING", "current": 4, "total": 11, "status": "Creating volumes"},
        {"state": "SUCCESS", "current": 11, "total": 11, "status": "Created"},
    )
    result = pvc_run(*CREATE)
    assert (result.code, result.out) == (0, "SUCCESS: Created\n")
    assert "Creating volumes" in result.err


def test_broken_stream_is_taken_up_where_it_ended(api: FakeApi, pvc_run: Any) -> None:
    broken = requests.exceptions.ChunkedEncodingError("connection broken")
    api.answers[LOG] = Steps(
        event_stream(("log", log_event(1, "one")), ("log", log_event(2, "two")), then=broken),
        event_stream(("log", log_event(3, "three")), ("end", task())),
    )
    result = pvc_run(*CREATE)
    assert result.code == 0
    assert [asked.query["after"] for asked in api.requests_to(LOG)] == [["0"], ["2"]]
    assert [word for word in ("one", "two", "three") if result.err.count(f"] {word}\n") == 1] == [
        "one",
        "two",
        "three",
    ]


def test_waiting_bears_an_api_that_restarts(api: FakeApi, pvc_run: Any) -> None:
    api.answers[TASK] = Steps(task("RUNNING"), *[requests.ConnectionError("refused")] * 6, task())
    assert pvc_run(*CREATE).code == 0


def test_an_api_gone_for_good_ends_the_wait(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvc.tasks.PATIENCE_S", -1.0)
    api.answers[TASK] = html(502)
    result = pvc_run(*CREATE)
    assert result.code == EXIT_CODES["unreachable"]
    assert "lost sight of the build b1, which goes on" in result.err


def test_ctrl_c_says_that_the_build_goes_on(api: FakeApi, pvc_run: Any) -> None:
    api.answers[LOG] = event_stream(("state", task("RUNNING")), then=KeyboardInterrupt())
    result = pvc_run(*CREATE)
    assert result.code == 130
    assert "the build b1 goes on" in result.err
    assert "pvc cluster task cancel b1" in result.err


def test_no_wait_prints_id_and_node(api: FakeApi, pvc_run: Any) -> None:
    result = pvc_run(*CREATE, "--no-wait")
    assert (result.code, result.out) == (0, "Task ID: b1 assigned to node hv1\n")
    assert len(api.asked) == 1


def test_json_prints_the_final_task_even_when_it_failed(api: FakeApi, pvc_run: Any) -> None:
    api.answers[LOG] = event_stream(("end", task("FAILURE")))
    result = pvc_run(*CREATE, "--json")
    assert result.code == 1
    assert json.loads(result.out)["state"] == "FAILURE"


def test_arguments_travel_in_the_body_only(api: FakeApi, pvc_run: Any) -> None:
    result = pvc_run(*CREATE, "-a", "password=s3=cret", "-a", "packages=a,b", "-D", "--no-wait")
    assert result.code == 0
    (asked,) = api.requests_to("POST /provisioner/create")
    assert asked.query == {}
    assert asked.form == {
        "name": ["web1"],
        "profile": ["debian12"],
        "define_vm": ["False"],
        "start_vm": ["False"],
        "arg": ["password=s3=cret", "packages=a,b"],
    }


def test_keep_on_failure_is_sent_only_when_wanted(api: FakeApi, pvc_run: Any) -> None:
    pvc_run(*CREATE, "--no-wait")
    pvc_run(*CREATE, "--no-wait", "--keep-on-failure")
    assert [asked.form.get("keep_on_failure") for asked in api.asked] == [None, ["True"]]


def test_an_argument_without_value_is_refused_before_anything_is_sent(api: FakeApi, pvc_run: Any) -> None:
    assert pvc_run(*CREATE, "-a", "release").code == 2
    assert not api.asked


def test_several_problems_are_listed_with_their_paths(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/create"] = (
        {
            "message": "cannot build web1: a; b",
            "what": "cannot build web1",
            "why": "a; b",
            "hint": "see the plan",
            "kind": "wrong-input",
            "problems": [
                {"path": "arguments.release", "message": "unknown release"},
                {"path": "name", "message": "taken"},
            ],
        },
        400,
    )
    result = pvc_run(*CREATE)
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: cannot build web1: 2 problems",
        "  arguments.release: unknown release",
        "  name: taken",
        "hint: see the plan",
    ]


def test_an_answer_without_task_id_is_an_error(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/create"] = ({}, 202)
    assert pvc_run(*CREATE).code == EXIT_CODES["unreachable"]


PLAN = {
    "ok": True,
    "node": "hv1",
    "vm": {"name": "web1", "vcpus": 2},
    "volumes": [{"disk_id": "sda", "pool": "vms", "volume": "web1_sda", "size_bytes": 5 << 30}],
    "networks": [{"vni": "upstream", "mac": "52:54:00:00:00:01", "bridge": "br0"}],
    "arguments": {"release": "bookworm", "secret": "<redacted>"},
    "checks": [{"name": "name free", "ok": True, "message": "yes", "hint": ""}],
    "problems": [],
}


def test_plan_shows_what_would_be_made(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /provisioner/plan"] = PLAN
    result = pvc_run("provisioner", "plan", "web1", "debian12", "-a", "release=bookworm")
    assert result.code == 0
    for text in ("web1_sda", "5 GiB", "52:54:00:00:00:01", "bookworm", "name free", "hv1"):
        assert text in result.out


def test_plan_says_each_thing_once(api: FakeApi, pvc_run: Any) -> None:
    vm = {"name": "web1", "uuid": "3b0e6b3e", "id": 1}
    system = {"id": 7, "name": "small", "vcpu_count": 2}
    api.answers["POST /provisioner/plan"] = {**PLAN, "vm": vm, "system": system}
    lines = pvc_run("provisioner", "plan", "web1", "debian12").out.splitlines()
    labels = [line.partition("  ")[0].strip() for line in lines]
    assert [labels.count(label) for label in ("name", "id", "system template", "vcpu count")] == [1, 1, 1, 1]
    assert not any(line.endswith(" 7") for line in lines)


def test_plan_that_cannot_be_built_exits_2(api: FakeApi, pvc_run: Any) -> None:
    checks = [
        {"name": "memory", "ok": False, "message": "hv1 lacks 2 GiB", "hint": "take a smaller template"}
    ]
    api.answers["POST /provisioner/plan"] = {**PLAN, "ok": False, "checks": checks}
    result = pvc_run("provisioner", "plan", "web1", "debian12")
    assert result.code == 2
    assert "error: web1 cannot be built like this: memory: hv1 lacks 2 GiB" in result.err
    assert "hint: take a smaller template" in result.err
