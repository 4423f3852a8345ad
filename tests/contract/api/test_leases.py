"""Who may work on a build: leases in a real database, told by its clock."""

from datetime import timedelta

import pytest

from pvccommon import builds
from pvccommon.database import Database, database_now
from pvccommon.errors import LeaseLost
from pvccommon.models import Build, Node, now
from pvccommon.placement import is_alive, is_silent

LEASE = timedelta(seconds=60)
MINE, THEIRS = "hv1/boot/1/1", "hv2/boot/2/2"


def waiting_build(database: Database, node: str = "hv1") -> str:
    with database.session() as session:
        build = Build(vm="web1", profile="debian", node=node, memory_mib=64, plan={"volumes": []})
        session.add(build)
        session.flush()
        return str(build.id)


def take(database: Database, build_id: str, node: str, owner: str) -> Build | None:
    with database.session() as session:
        return builds.take_build(session, build_id, node, owner, LEASE)


def test_a_waiting_build_is_taken_once(database: Database) -> None:
    build_id = waiting_build(database)
    assert take(database, build_id, "hv1", MINE)
    assert take(database, build_id, "hv1", "hv1/boot/3/3") is None, "a second delivery"


def test_a_build_that_was_moved_is_not_taken_by_its_former_node(database: Database) -> None:
    build_id = waiting_build(database, node="hv2")
    assert take(database, build_id, "hv1", MINE) is None
    assert take(database, build_id, "hv2", THEIRS)


def test_leases_are_told_by_the_clock_of_the_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "now", lambda: now() + timedelta(days=1))
    build_id = waiting_build(database)
    take(database, build_id, "hv1", MINE)
    with database.session() as session:
        assert builds.renew_lease(session, build_id, MINE, LEASE)
        left = session.get(Build, build_id).lease_until - database_now(session)
    assert timedelta(seconds=50) < left <= LEASE


def test_a_lost_lease_is_neither_renewed_nor_used(database: Database) -> None:
    build_id = waiting_build(database)
    take(database, build_id, "hv1", MINE)
    with database.session() as session:
        builds.give_lease(session, builds.find_build(session, build_id, lock=True), THEIRS, LEASE)
    with database.session() as session:
        assert builds.renew_lease(session, build_id, MINE, LEASE) is None
        assert builds.find_held(session, build_id, THEIRS)
        with pytest.raises(LeaseLost):
            builds.find_held(session, build_id, MINE)


def test_a_node_is_judged_by_its_last_report(database: Database, node: str) -> None:
    limit = timedelta(seconds=30)
    with database.session() as session:
        row = session.get(Node, node)
        at = database_now(session)
        row.heartbeat = at - timedelta(seconds=29)
        assert is_alive(row, at, limit) and not is_silent(row, at, limit)
        row.stopped = True
        assert not is_alive(row, at, limit) and not is_silent(row, at, limit), "it may come back"
        row.heartbeat = at - timedelta(seconds=30)
        assert is_silent(row, at, limit)
