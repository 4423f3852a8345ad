"""Builds that wait for a node which is gone go to another, in their order."""

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pvccommon.config import Config, parse_config
from pvccommon.database import Database, database_now
from pvccommon.models import Build, BuildEvent, BuildState, Node
from pvccommon.moving import move_waiting

CREATE = "/provisioner/create"

Accept = Callable[..., list[str]]


@pytest.fixture
def other(database: Database, node: str) -> str:
    """A second node like the first."""
    with database.session() as session:
        first = session.get(Node, node)
        columns = {
            column.name: copy.deepcopy(getattr(first, column.name)) for column in Node.__table__.columns
        }
        session.add(Node(**{**columns, "name": "hv2", "memory_free_mib": 4096}))
    return "hv2"


@pytest.fixture
def accept(api: Any, profile: str, answering: Any, other: str, database: Database, expect: Any) -> Accept:
    """Accept builds for hv1, which then dies; returns their ids."""

    def make(*names: str, silent_s: int = 60, stopped: bool = False) -> list[str]:
        request = {"profile": "debian12", "arg": ["password=hidden", "count=2"]}
        tasks = [expect(api.post(CREATE, {**request, "name": name}), 202)["task_id"] for name in names]
        with database.session() as session:
            assert {session.get(Build, task).node for task in tasks} == {"hv1"}
            dead = session.get(Node, "hv1")
            dead.heartbeat = database_now(session) - timedelta(seconds=silent_s)
            dead.stopped = stopped
        return tasks

    return make


def move(database: Database, config: Config) -> list[str]:
    with database.session() as session:
        return [build.id for build in move_waiting(session, config, "hv1")]


def change(database: Database, name: str, **columns: Any) -> None:
    with database.session() as session:
        for column, value in columns.items():
            setattr(session.get(Node, name), column, value)


def last_event(database: Database, task: str) -> str:
    with database.session() as session:
        events = session.query(BuildEvent).filter_by(build=task).order_by(BuildEvent.seq).all()
        return str(events[-1].message)


def test_waiting_builds_move_in_their_order(accept: Accept, database: Database, config: Config) -> None:
    tasks = accept("web1", "web2", "web3")
    change(database, "hv2", networks={"upstream": {"bridge": "brother", "user": False, "present": True}})
    with database.session() as session:
        before = copy.deepcopy(session.get(Build, tasks[0]).plan)
    assert move(database, config) == tasks
    with database.session() as session:
        build = session.get(Build, tasks[0])
        assert (build.node, build.plan["node"], build.requested["run_on"]) == ("hv2", "hv2", "hv2")
        assert build.plan["networks"][0]["bridge"] == "brother"
        assert build.plan["networks"][0]["mac"] == before["networks"][0]["mac"]
        assert build.plan["vm"] == before["vm"]
    assert "moved from hv1 to hv2" in last_event(database, tasks[0])
    assert move(database, config) == []


def test_build_without_another_node_stays_and_says_why(
    accept: Accept, database: Database, config: Config, api: Any, expect: Any
) -> None:
    [task] = accept("web1")
    change(database, "hv2", memory_free_mib=1)
    assert move(database, config) == move(database, config) == []
    shown = expect(api.get(f"/tasks/{task}"), 200)
    assert "hv1 is gone" in shown["status"] and "hv2: needs" in shown["status"]
    with database.session() as session:
        assert session.query(BuildEvent).filter_by(build=task).count() == 1, "said once"
    change(database, "hv2", memory_free_mib=4096)
    assert move(database, config) == [task]


def test_builds_that_run_or_were_cancelled_do_not_move(
    accept: Accept, database: Database, config: Config, api: Any, expect: Any
) -> None:
    running, cancelled, waiting = accept("web1", "web2", "web3")
    expect(api.post(f"/tasks/{cancelled}/cancel"), 200)
    with database.session() as session:
        session.get(Build, running).state = BuildState.RUNNING.value
    assert move(database, config) == [waiting]


def test_row_somebody_works_on_is_left_to_him(accept: Accept, database: Database, config: Config) -> None:
    first, second = accept("web1", "web2")
    with database.session() as session:
        session.query(Build).filter_by(id=first).with_for_update().one()
        assert move(database, config) == [second]


def test_memory_of_moved_builds_counts_for_those_after_them(
    accept: Accept, database: Database, settings: dict[str, Any]
) -> None:
    tasks = accept("web1", "web2", "web3")
    with database.session() as session:
        each = session.get(Build, tasks[0]).memory_mib
    config = parse_config({**settings, "node": {"name": "api1", "reserved_memory_mib": 1}})
    change(database, "hv2", memory_free_mib=2 * each + 1)
    assert move(database, config) == tasks[:2]


def test_clone_moves_only_where_its_source_is(accept: Accept, database: Database, config: Config) -> None:
    [task] = accept("web1")
    with database.session() as session:
        build = session.get(Build, task)
        plan = copy.deepcopy(build.plan)
        plan["volumes"][0]["source_volume"] = "golden_sda"
        build.plan = plan
        pools = copy.deepcopy(session.get(Node, "hv1").pools)
    assert move(database, config) == []
    pools["vms"]["identity"] = "cluster/vms"
    change(database, "hv1", pools=pools)
    change(database, "hv2", pools=copy.deepcopy(pools))
    assert move(database, config) == [task]
