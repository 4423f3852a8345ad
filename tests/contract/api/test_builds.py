"""Plan, create, task list, task state, cancel."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from pvccommon import builds
from pvccommon.config import parse_config
from pvccommon.database import Database
from pvccommon.errors import Busy, EnvironmentFault, PvcError
from pvccommon.models import Build, BuildState, Node, Vm, now
from pvccommon.queue import create_celery, queue_length, send_build

CREATE = "/provisioner/create"
PLAN = "/provisioner/plan"
REQUEST = {"name": "web1", "profile": "debian12"}


def paths(answer: Any) -> set[str]:
    return {problem["path"] for problem in answer["problems"]}


def count(database: Database, model: Any) -> int:
    with database.session() as session:
        found: int = session.query(model).count()
        return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_create_is_accepted_and_sent(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    answer = api.post(CREATE, {**REQUEST, "arg": ["release=trixie", "password=hidden"]})
    body = expect(answer, 202)
    assert set(body) == {"task_id", "task_name", "run_on"}
    assert (body["task_name"], body["run_on"]) == ("provisioner.create", "hv1")
    assert answer.headers["Location"].endswith(f"/api/v1/tasks/{body['task_id']}")
    with database.session() as session:
        build = session.get(Build, body["task_id"])
    assert build.sent is not None
    # Absent, these are true.
    assert (build.plan["define"], build.plan["start"]) == (True, True)
    assert build.secrets == {"password": "hidden"}
    assert "hidden" not in str(build.plan) + str(build.requested)
    wait_until(lambda: answering.builds == [body["task_id"]])


def test_define_and_start_can_be_switched_off(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    expect(api.post(CREATE, {**REQUEST, "define_vm": "False", "start_vm": "False"}), 202)
    with database.session() as session:
        plan = session.query(Build).one().plan
    assert (plan["define"], plan["start"]) == (False, False)


def test_task_lists_have_the_shape_clients_read(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    assert expect(api.get("/tasks"), 200) == {"active": {}, "reserved": {}, "scheduled": {}}
    task = expect(api.post(CREATE, {**REQUEST, "arg": ["password=hidden", "count=2"]}), 202)["task_id"]
    answer = expect(api.get("/tasks"), 200)
    assert answer["active"] == {}
    kwargs = {
        "vm_name": "web1",
        "profile_name": "debian12",
        "define_vm": True,
        "start_vm": True,
        "script_run_args": ["password=<redacted>", "count=2"],
        "run_on": "hv1",
    }
    assert answer["reserved"] == {
        "hv1": [{"id": task, "name": "provisioner.create", "args": [], "kwargs": kwargs}]
    }
    with database.session() as session:
        session.get(Build, task).state = BuildState.RUNNING.value
    answer = expect(api.get("/tasks"), 200)
    assert (list(answer["active"]), answer["reserved"]) == (["hv1"], {})
    assert "hidden" not in api.get("/tasks", {"history": "true"}).text


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("queued", "PENDING"),
        ("running", "RUNNING"),
        ("undoing", "RUNNING"),
        ("succeeded", "SUCCESS"),
        ("failed", "FAILURE"),
        ("cancelled", "FAILURE"),
    ],
)
def test_task_states_in_words_of_existing_clients(
    api: Any, profile: str, answering: Any, database: Database, expect: Any, state: str, word: str
) -> None:
    task = expect(api.post(CREATE, REQUEST), 202)["task_id"]
    with database.session() as session:
        build = session.get(Build, task)
        build.state, build.step, build.stage, build.percent = state, 7, "install", 12.5
        builds.enter_stage(build, 7, "install", "installing")
    body = expect(api.get(f"/tasks/{task}"), 200)
    assert (body["state"], body["build_state"], body["current"], body["total"]) == (word, state, 7, 11)
    assert body["status"] == "installing"
    assert (body["id"], body["vm"], body["profile"], body["node"]) == (task, "web1", "debian12", "hv1")
    assert body["stages"][0]["stage"] == "install"
    assert body["created"].startswith("20")
    assert (body["started"], body["finished"], body["error"]) == (None, None, None)


@pytest.mark.parametrize("task", ["0123456789abcdef", "x", "%20", "é", "0" * 500])
def test_an_unknown_task_is_a_failed_one(api: Any, expect: Any, task: str) -> None:
    body = expect(api.get(f"/tasks/{task}"), 200)
    assert body["state"] == "FAILURE"
    assert isinstance(body["status"], str)
    assert body["total"] >= 1
    assert body["error"]["kind"] == "not-found"
    expect(api.get(f"/tasks/{task}/log"), 404)
    expect(api.post(f"/tasks/{task}/cancel"), 404)


def test_history_is_newest_first(api: Any, profile: str, answering: Any, expect: Any) -> None:
    tasks = [expect(api.post(CREATE, {**REQUEST, "name": f"web{n}"}), 202)["task_id"] for n in range(3)]
    listed = expect(api.get("/tasks", {"history": "true"}), 200)
    assert [task["id"] for task in listed["builds"]] == tasks[::-1]
    assert set(listed) == {"builds"}
    assert len(expect(api.get("/tasks", {"history": "true", "limit": 2}), 200)["builds"]) == 2


def test_a_failed_build_says_why(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    task = expect(api.post(CREATE, REQUEST), 202)["task_id"]
    error = {
        "kind": "environment",
        "what": "install",
        "why": "mmdebstrap exited 1",
        "hint": "look",
        "stage": "install",
    }
    with database.session() as session:
        builds.finish_build(session.get(Build, task), BuildState.FAILED, error)
    body = expect(api.get(f"/tasks/{task}"), 200)
    assert (body["state"], body["error"]) == ("FAILURE", error)
    assert "mmdebstrap exited 1" in body["status"]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"profile": "none"}, {"profile"}),
        ({"profile": "../x"}, {"profile"}),
        ({"name": "Web_1"}, {"name"}),
        ({"name": "-web"}, {"name"}),
        ({"name": "web."}, {"name"}),
        ({"name": "w" * 64}, {"name"}),
        ({"name": "web1;id"}, {"name"}),
        ({"name": "1\n2"}, {"name"}),
        ({"arg": "colour=red"}, {"arguments.colour"}),
        ({"arg": "count"}, {"arguments[2]"}),
        ({"arg": "=1"}, {"arguments[2]"}),
        ({"arg": "count=many"}, {"arguments.count"}),
        ({"arg": "count=99"}, {"arguments.count"}),
        ({"arg": "release=sid"}, {"arguments.release"}),
        ({"arg": "password=<redacted>"}, {"arguments.password"}),
        ({"define_vm": "perhaps"}, {"define_vm"}),
        ({"name": "Web", "arg": ["count=x", "release=y"], "start_vm": "2"},
         {"name", "arguments.count", "arguments.release", "start_vm"}),
    ],
)  # fmt: skip
def test_bad_requests_make_nothing(
    api: Any,
    profile: str,
    answering: Any,
    database: Database,
    expect: Any,
    change: dict[str, Any],
    wrong: set[str],
) -> None:
    assert paths(expect(api.post(CREATE, {**REQUEST, **change}), 400)) == wrong
    assert count(database, Build) == 0
    assert answering.builds == []


def test_a_missing_argument_is_told(api: Any, profile: str, answering: Any, expect: Any) -> None:
    expect(api.put("/provisioner/profile/debian12", {"arg": ""}), 200)
    assert paths(expect(api.post(CREATE, REQUEST), 400)) == {"arguments.owner"}
    expect(api.post(CREATE, {**REQUEST, "arg": "owner=x"}), 202)


def test_names_are_taken_once(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    expect(api.post(CREATE, REQUEST), 202)
    again = expect(api.post(CREATE, REQUEST), 400)
    assert "web1" in again["message"]
    assert (again["kind"], paths(again)) == ("exists", {"name"})
    assert count(database, Build) == 1
    with database.session() as session:
        session.add(Vm(name="web2", node="hv1", state="start", memory_mib=1, vcpus=1, xml="<domain/>"))
    assert expect(api.post(CREATE, {**REQUEST, "name": "web2"}), 400)["kind"] == "exists"
    both = expect(api.post(CREATE, {**REQUEST, "name": "web2", "arg": "count=x"}), 400)
    assert (both["kind"], paths(both)) == ("wrong-input", {"name", "arguments.count"})
    assert expect(api.post(CREATE, {"name": "web3", "profile": "none"}), 400)["kind"] == "wrong-input"
    assert count(database, Build) == 1


@pytest.mark.parametrize(
    ("column", "value", "path"),
    [
        ("memory_free_mib", 100, "memory"),
        ("pools", {"vms": {"driver": "directory", "total_bytes": 10, "free_bytes": 10}}, "pool.vms"),
        ("pools", {}, "volume.web1_sda"),
        ("networks", {}, "network.upstream"),
        ("filesystems", [], "filesystem.ext4"),
        ("stopped", True, "node"),
    ],
)
def test_what_the_node_cannot_do_is_refused(
    api: Any,
    profile: str,
    answering: Any,
    database: Database,
    expect: Any,
    column: str,
    value: Any,
    path: str,
) -> None:
    with database.session() as session:
        setattr(session.get(Node, "hv1"), column, value)
    assert path in paths(expect(api.post(CREATE, REQUEST), 400))
    assert count(database, Build) == 0


def test_a_volume_in_the_way_is_told(api: Any, profile: str, answering: Any, expect: Any) -> None:
    answering.answers["volume.find"] = {"found": {"size_bytes": 1}}
    assert paths(expect(api.post(CREATE, REQUEST), 400)) == {"volume.web1_sda"}


def test_plan_shows_everything_and_makes_nothing(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    body = expect(api.post(PLAN, {**REQUEST, "arg": "password=hidden"}), 200)
    assert (body["ok"], body["node"], body["problems"]) == (True, "hv1", [])
    assert body["vm"]["name"] == "web1"
    assert body["volumes"][0] == {
        "pool": "vms",
        "volume": "web1_sda",
        "disk_id": "sda",
        "size_bytes": 4 * 1024**3,
        "filesystem": "ext4",
        "filesystem_args": ["-L=root"],
        "mountpoint": "/",
        "source_volume": None,
        "source_snapshot": None,
    }
    network = body["networks"][0]
    assert (network["vni"], network["user"], network["bridge"]) == ("upstream", True, None)
    assert body["arguments"]["password"] == "<redacted>"
    assert body["arguments"]["count"] == 1
    assert all(check["ok"] for check in body["checks"])
    assert "hidden" not in str(body)
    assert count(database, Build) == 0
    assert answering.builds == []


def test_plan_tells_what_is_wrong(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    body = expect(api.post(PLAN, {**REQUEST, "profile": "none"}), 200)
    assert (body["ok"], paths(body)) == (False, {"profile"})
    with database.session() as session:
        session.get(Node, "hv1").memory_free_mib = 0
    body = expect(api.post(PLAN, {**REQUEST, "arg": "count=x"}), 200)
    assert (body["ok"], paths(body)) == (False, {"arguments.count"})
    assert [check["name"] for check in body["checks"] if not check["ok"]] == ["memory"]
    expect(api.post(PLAN, {**REQUEST, "name": "A B"}), 400)
    expect(api.post(PLAN), 400)


def test_cancel_of_a_waiting_build(api: Any, profile: str, answering: Any, expect: Any) -> None:
    task = expect(api.post(CREATE, REQUEST), 202)["task_id"]
    expect(api.post(f"/tasks/{task}/cancel"), 200)
    body = expect(api.get(f"/tasks/{task}"), 200)
    assert (body["state"], body["build_state"]) == ("FAILURE", "cancelled")
    assert expect(api.post(f"/tasks/{task}/cancel"), 400)["kind"] == "wrong-state"
    # The name is free again.
    expect(api.post(CREATE, REQUEST), 202)


def test_cancel_of_a_running_build_reaches_its_node(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    task = expect(api.post(CREATE, REQUEST), 202)["task_id"]
    with database.session() as session:
        build = session.get(Build, task)
        build.state, build.lease_owner, build.lease_until = BuildState.RUNNING.value, "x", now()
    expect(api.post(f"/tasks/{task}/cancel"), 200)
    assert ("build.cancel", {"build": task}) in answering.calls
    with database.session() as session:
        assert session.get(Build, task).cancel_requested


def test_cancel_of_a_build_that_is_being_undone_says_so(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    task = expect(api.post(CREATE, REQUEST), 202)["task_id"]
    with database.session() as session:
        session.get(Build, task).state = BuildState.UNDOING.value
    assert "already" in expect(api.post(f"/tasks/{task}/cancel"), 200)["message"]
    assert answering.calls[1:] == [("build.cancel", {"build": task})], "it sees to one whose process is gone"
    with database.session() as session:
        assert not session.get(Build, task).cancel_requested


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(EnvironmentFault("x", "y"), 500, "environment"), (Busy("x", "y"), 503, "busy-retry")],
)
def test_a_node_that_cannot_look_is_no_fault_of_the_request(
    api: Any, profile: str, answering: Any, database: Database, expect: Any,
    error: PvcError, status: int, kind: str,
) -> None:  # fmt: skip
    answering.answers["volume.find"] = error
    assert expect(api.post(CREATE, REQUEST), status)["kind"] == kind
    assert expect(api.post(CREATE, {**REQUEST, "arg": "count=x"}), 400)["kind"] == "wrong-input"
    body = expect(api.post(PLAN, REQUEST), 200)
    assert [check["name"] for check in body["checks"] if not check["ok"]] == ["volume.web1_sda"]
    assert count(database, Build) == 0


@pytest.fixture(params=["refuses", "mute"])
def no_queue(
    request: pytest.FixtureRequest, app: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A Redis that is not there, or takes connections and says nothing."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if request.param == "mute":
            listener.listen(16)
        away = parse_config({**settings, "queue": {**settings["queue"], "port": port}})
        monkeypatch.setattr(app.extensions["pvc"], "queue", create_celery(away.queue))
        yield


def test_without_a_queue_the_answer_comes_soon(
    api: Any, profile: str, no_queue: None, database: Database, expect: Any
) -> None:
    begun = time.monotonic()
    assert expect(api.post(CREATE, REQUEST), 500)["kind"] == "environment"
    assert time.monotonic() - begun < 9  # 6 on a machine with nothing else to do
    begun = time.monotonic()
    assert not expect(api.post(PLAN, REQUEST), 200)["ok"]
    assert time.monotonic() - begun < 9
    assert count(database, Build) == 0


def test_without_a_queue_an_accepted_build_waits(no_queue: None, app: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(EnvironmentFault):
        send_build(app.extensions["pvc"].queue, "0", "hv1")
    with pytest.raises(EnvironmentFault):
        queue_length(app.extensions["pvc"].queue, "node.hv1")
    assert time.monotonic() - begun < 18


def test_requests_at_one_time_do_not_take_the_same_space(
    api: Any, app: Any, profile: str, answering: Any, database: Database
) -> None:
    with database.session() as session:
        pool = {"driver": "directory", "total_bytes": 9 << 30, "free_bytes": 9 << 30}
        session.get(Node, "hv1").pools = {"vms": pool}  # room for two disks of 4 GiB

    def ask(number: int) -> tuple[int, set[str]]:
        answer = app.test_client().post(
            f"/api/v1{CREATE}",
            query_string={**REQUEST, "name": f"web{number}"},
            headers={"X-Api-Key": api.token},
        )
        return answer.status_code, paths(answer.json) if answer.status_code == 400 else set()

    with ThreadPoolExecutor(6) as threads:
        answers = sorted(threads.map(ask, range(6)))
    assert [status for status, _ in answers] == [202] * 2 + [400] * 4
    assert all(problems == {"pool.vms"} for status, problems in answers if status == 400)
    assert count(database, Build) == 2


def test_of_many_requests_at_one_time_one_is_accepted(
    api: Any, app: Any, profile: str, answering: Any, database: Database
) -> None:
    def ask(_: int) -> int:
        headers = {"X-Api-Key": api.token}
        status: int = (
            app.test_client().post(f"/api/v1{CREATE}", query_string=REQUEST, headers=headers).status_code
        )
        return status

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(ask, range(8)))
    assert statuses == [202] + [400] * 7
    assert count(database, Build) == 1
