"""Builds that ended badly: their retry, their secrets, and the volumes kept of them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon import builds
from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault
from pvccommon.models import Audit, Build, BuildEvent, BuildState, Node, Resource, ResourceState, Vm, now
from pvccommon.retries import plan_retry

CREATE = "/provisioner/create"
REQUEST = {"name": "web1", "profile": "debian12", "arg": ["password=hidden", "count=2"]}
ERROR = {"kind": "script-failed", "what": "install", "why": "no mirror", "hint": "", "stage": "install"}

End = Callable[..., str]


@pytest.fixture
def end(api: Any, profile: str, answering: Any, database: Database, expect: Any) -> End:
    """Make a build that has ended; returns its id."""

    def make(state: BuildState = BuildState.FAILED, **request: Any) -> str:
        task: str = expect(api.post(CREATE, {**REQUEST, **request}), 202)["task_id"]
        with database.session() as session:
            builds.finish_build(session.get(Build, task), state, ERROR)
        return task

    return make


def paths(answer: Any) -> set[str]:
    return {problem["path"] for problem in answer["problems"]}


def journal(session: Session, build: str, **states: ResourceState) -> None:
    """Lines for volumes of a build: `sda=ResourceState.HELD`."""
    for seq, (disk, state) in enumerate(states.items(), 1):
        name = f"vms/web1_{disk}"
        session.add(Resource(build=build, seq=seq, kind="volume", name=name, node="hv1", state=state.value))


def journal_states(database: Database, build: str) -> list[str]:
    with database.session() as session:
        rows = session.query(Resource).filter_by(build=build).order_by(Resource.seq)
        return [row.state for row in rows]


@pytest.mark.parametrize("state", [BuildState.FAILED, BuildState.CANCELLED])
def test_a_retry_is_the_same_plan_again(
    api: Any, end: End, answering: Any, database: Database, expect: Any, state: BuildState
) -> None:
    first = end(state, keep_on_failure="true", start_vm="false")
    # Whatever has changed since: the plan is frozen.
    expect(api.put("/provisioner/profile/debian12", {"arg": ["owner=you", "count=7"]}), 200)
    answer = api.post(f"/tasks/{first}/retry")
    body = expect(answer, 202)
    assert set(body) == {"task_id", "task_name", "run_on"}
    assert answer.headers["Location"].endswith(f"/tasks/{body['task_id']}")
    second = body["task_id"]
    with database.session() as session:
        before, after = session.get(Build, first), session.get(Build, second)
        audited = session.query(Audit).filter_by(path=f"/api/v1/tasks/{first}/retry").one()
        note = session.query(BuildEvent).filter_by(build=second).one()
    assert after.plan == before.plan
    assert after.secrets == before.secrets == {"password": "hidden"}
    assert (after.state, after.retry_of, after.keep_on_failure) == ("queued", first, True)
    assert (audited.method, audited.status) == ("POST", 202)
    assert first in note.message
    assert expect(api.get(f"/tasks/{second}"), 200)["retry_of"] == first
    assert "hidden" not in api.get("/tasks", {"history": "true"}).text


def test_only_what_ended_badly_is_retried(api: Any, end: End, database: Database, expect: Any) -> None:
    assert expect(api.post("/tasks/0123456789abcdef/retry"), 404)["kind"] == "not-found"
    task = end(BuildState.SUCCEEDED)
    refused = expect(api.post(f"/tasks/{task}/retry"), 400)
    assert (refused["kind"], refused["why"]) == ("wrong-state", "it has succeeded")
    for state in ("queued", "running", "undoing"):
        with database.session() as session:
            session.get(Build, task).state = state
        refused = expect(api.post(f"/tasks/{task}/retry"), 400)
        assert (refused["kind"], state in refused["why"]) == ("wrong-state", True)


def test_every_check_is_made_again(
    api: Any, end: End, answering: Any, database: Database, expect: Any
) -> None:
    task = end()
    with database.session() as session:
        session.get(Node, "hv1").filesystems = []
        session.add(Vm(name="web1", node="hv1", state="start", memory_mib=1, vcpus=1, xml="<domain/>"))
    answering.answers["volume.find"] = {"found": {"size_bytes": 1}}
    refused = expect(api.post(f"/tasks/{task}/retry"), 400)
    assert paths(refused) == {"name", "filesystem.ext4", "volume.web1_sda"}
    with database.session() as session:
        session.query(Vm).delete()
        session.get(Node, "hv1").filesystems = ["ext4"]
    answering.answers["volume.find"] = EnvironmentFault("x", "y")
    assert expect(api.post(f"/tasks/{task}/retry"), 500)["kind"] == "environment"


def test_of_two_retries_at_once_one_is_accepted(api: Any, app: Any, end: End, database: Database) -> None:
    task = end()

    def ask(_: int) -> tuple[int, str]:
        headers = {"X-Api-Key": api.token}
        answer = app.test_client().post(f"/api/v1/tasks/{task}/retry", headers=headers)
        return answer.status_code, answer.json.get("kind", "")

    with ThreadPoolExecutor(4) as threads:
        answers = sorted(threads.map(ask, range(4)))
    assert answers == [(202, "")] + [(400, "exists")] * 3
    with database.session() as session:
        assert session.query(Build).filter_by(retry_of=task).count() == 1


def test_secrets_that_are_not_kept_any_more_must_be_given(
    api: Any, end: End, answering: Any, database: Database, expect: Any
) -> None:
    task = end()
    with database.session() as session:
        assert builds.drop_old_secrets(session, timedelta(hours=1)) == 0
        session.get(Build, task).finished = now() - timedelta(hours=2)
    with database.session() as session:
        assert builds.drop_old_secrets(session, timedelta(hours=1)) == 1
    refused = expect(api.post(f"/tasks/{task}/retry"), 400)
    assert paths(refused) == {"arguments.password"}
    assert "-a password=" in refused["message"]
    body = expect(api.post(f"/tasks/{task}/retry", form={"arg": "password=again"}), 202)
    with database.session() as session:
        assert session.get(Build, body["task_id"]).secrets == {"password": "again"}
        assert "again" not in str([row.parameters for row in session.query(Audit)])


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("release=trixie", "arguments.release"),
        ("colour=red", "arguments.colour"),
        ("password", "arguments[0]"),
        ("password=<redacted>", "arguments.password"),
    ],
)
def test_a_retry_takes_secret_arguments_only(
    api: Any, end: End, expect: Any, argument: str, path: str
) -> None:
    assert paths(expect(api.post(f"/tasks/{end()}/retry", {"arg": argument}), 400)) == {path}


def test_secrets_go_when_the_retry_succeeds(api: Any, end: End, database: Database, expect: Any) -> None:
    first = end()
    second = expect(api.post(f"/tasks/{first}/retry"), 202)["task_id"]
    with database.session() as session:
        build = session.get(Build, second)
        builds.finish_build(build, BuildState.SUCCEEDED)
        builds.drop_retried_secrets(session, build)
    with database.session() as session:
        assert [session.get(Build, task).secrets for task in (first, second)] == [{}, {}]


def test_a_dead_node_s_build_goes_to_another(end: End, database: Database) -> None:
    task = end()
    with database.session() as session:
        old = session.get(Node, "hv1")
        columns = {column.name: getattr(old, column.name) for column in Node.__table__.columns}
        bridge = {"upstream": {"bridge": "br9", "user": False, "present": True}}
        session.add(Node(**{**columns, "name": "hv2", "networks": bridge}))
        old.stopped = True
    with database.session() as session:
        earlier = session.get(Build, task)
        retry = plan_retry(session, Config(), earlier, [])
        assert retry.note.endswith("; node hv1 is not running, so it goes to hv2")
        plan = retry.planned.plan
        assert (plan["node"], plan["networks"][0]["bridge"]) == ("hv2", "br9")
        assert plan["networks"][0]["mac"] == earlier.plan["networks"][0]["mac"]
        assert (earlier.plan["node"], plan["vm"]) == ("hv1", earlier.plan["vm"])


def test_kept_volumes_are_shown_and_stand_in_the_way(
    api: Any, end: End, answering: Any, database: Database, expect: Any
) -> None:
    task = end(keep_on_failure="true")
    with database.session() as session:
        journal(session, task, sda=ResourceState.HELD, sdb=ResourceState.UNDONE)
    command = f"pvc cluster task discard {task}"
    shown = expect(api.get(f"/tasks/{task}"), 200)
    assert shown["kept_volumes"] == ["vms/web1_sda"]
    assert command in shown["status"]
    listed = expect(api.get("/tasks", {"history": "true"}), 200)["builds"]
    assert [build["kept_volumes"] for build in listed] == [["vms/web1_sda"]]
    again = expect(api.post(CREATE, REQUEST), 400)
    assert (paths(again), again["hint"]) == ({"volume.web1_sda"}, command)
    retry = expect(api.post(f"/tasks/{task}/retry"), 400)
    assert (retry["kind"], retry["hint"]) == ("wrong-state", command)


def test_discard_has_the_node_remove_them(
    api: Any, end: End, answering: Any, database: Database, expect: Any
) -> None:
    task = end(keep_on_failure="true")
    assert expect(api.post(f"/tasks/{task}/discard"), 400)["kind"] == "wrong-state"
    with database.session() as session:
        journal(session, task, sda=ResourceState.HELD, sdb=ResourceState.UNDONE)
    for _ in range(2):  # the node of this test leaves its journal alone, so this can be repeated
        assert "vms/web1_sda" in expect(api.post(f"/tasks/{task}/discard"), 200)["message"]
        assert answering.calls[-1] == ("build.discard", {"build": task})
        assert journal_states(database, task) == ["made", "undone"]
    # Until the node has removed them, nobody may make them anew.
    assert paths(expect(api.post(CREATE, REQUEST), 400)) == {"volume.web1_sda"}
    with database.session() as session:
        session.get(Resource, (task, 1)).state = ResourceState.UNDONE.value
    assert expect(api.post(f"/tasks/{task}/discard"), 400)["kind"] == "wrong-state"
    expect(api.post(f"/tasks/{task}/retry"), 202)


@pytest.mark.parametrize("trouble", ["dead", "silent", "busy"])
def test_discard_is_remembered_when_the_node_cannot(
    api: Any, end: End, answering: Any, database: Database, expect: Any, trouble: str
) -> None:
    task = end(keep_on_failure="true")
    with database.session() as session:
        journal(session, task, sda=ResourceState.HELD)
        session.get(Node, "hv1").stopped = trouble == "dead"
    answering.calls.clear()
    if trouble == "silent":
        answering.answers["build.discard"] = EnvironmentFault("x", "y")
    elif trouble == "busy":
        answering.answers["build.discard"] = {"failures": ["volume vms/web1_sda: it is in use"]}
    assert "hv1 has not done it yet" in expect(api.post(f"/tasks/{task}/discard"), 200)["message"]
    assert journal_states(database, task) == ["made"]
    assert bool(answering.calls) == (trouble != "dead")


def test_a_build_that_runs_has_nothing_to_discard(
    api: Any, end: End, database: Database, expect: Any
) -> None:
    task = end()
    with database.session() as session:
        session.get(Build, task).state = "undoing"
        journal(session, task, sda=ResourceState.HELD)
    assert "has not ended" in expect(api.post(f"/tasks/{task}/discard"), 400)["why"]
    assert journal_states(database, task) == ["held"]


@pytest.mark.parametrize("trouble", ["dead", "silent"])
def test_cancel_ends_a_build_whose_node_does_not_answer(
    api: Any, end: End, answering: Any, database: Database, expect: Any, trouble: str
) -> None:
    task = end(keep_on_failure="true")
    with database.session() as session:
        build = session.get(Build, task)
        build.state, build.error, build.lease_owner = BuildState.RUNNING.value, None, "hv1/boot/1/1"
        journal(session, task, sda=ResourceState.MADE, sdb=ResourceState.INTENDED)
        session.get(Node, "hv1").stopped = trouble == "dead"
    answering.answers["build.cancel"] = EnvironmentFault("x", "y")
    begun = time.monotonic()
    assert "hv1 does not answer" in expect(api.post(f"/tasks/{task}/cancel"), 200)["message"]
    assert time.monotonic() - begun < 5
    shown = expect(api.get(f"/tasks/{task}"), 200)
    assert (shown["build_state"], shown["error"]["kind"]) == ("cancelled", "cancelled")
    assert shown["kept_volumes"] == ["vms/web1_sda"]
    assert journal_states(database, task) == ["held", "intended"]
    with database.session() as session:
        assert session.get(Build, task).lease_owner is None


def test_cancel_leaves_the_end_to_a_build_that_moves_on(
    api: Any, end: End, answering: Any, database: Database, expect: Any
) -> None:
    """Its process has seen the cancel by itself, though nobody could tell it."""
    task = end()
    with database.session() as session:
        build = session.get(Build, task)
        build.state, build.error, build.lease_owner = BuildState.RUNNING.value, None, "hv1/boot/1/1"
    answering.answers["build.cancel"] = EnvironmentFault("x", "y")

    def undo() -> None:
        time.sleep(0.5)
        with database.session() as session:
            session.get(Build, task).state = BuildState.UNDOING.value

    with ThreadPoolExecutor(1) as threads:
        moved = threads.submit(undo)
        assert "is being undone" in expect(api.post(f"/tasks/{task}/cancel"), 200)["message"]
        moved.result()
    assert expect(api.get(f"/tasks/{task}"), 200)["build_state"] == "undoing"


def test_cancel_does_not_wait_for_a_node_that_froze_with_the_row_locked(
    api: Any, end: End, answering: Any, database: Database, expect: Any
) -> None:
    task = end()
    with database.session() as session:
        build = session.get(Build, task)
        build.state, build.error, build.lease_owner = BuildState.RUNNING.value, None, "hv1/boot/1/1"
    locked, cancelled = threading.Event(), threading.Event()

    def freeze() -> None:
        with database.session() as session:
            builds.find_build(session, task, lock=True)
            locked.set()
            assert cancelled.wait(20)
            session.execute(select(Build.id))

    with ThreadPoolExecutor(1) as threads:
        frozen = threads.submit(freeze)
        assert locked.wait(10)
        begun = time.monotonic()
        expect(api.post(f"/tasks/{task}/cancel"), 200)
        assert time.monotonic() - begun < 5
        cancelled.set()
        with pytest.raises(EnvironmentFault):
            frozen.result()
