"""Pools: what all nodes have, and those that are made in Ceph by a node that may."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvccommon.config import Ceph, Config, Storage, parse_config
from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault
from pvccommon.models import Audit, CephPool, Node
from pvccommon.storage.directory import DirectoryPool
from pvcnoded.pool_commands import PoolCommands
from pvcnoded.pools import NodePools

POOLS = "/storage/ceph/pool"
STATS = {
    *("id", "stored_bytes", "free_bytes", "used_bytes", "used_percent"),
    *("read_bytes", "write_bytes", "read_ops", "write_ops"),
    *("num_objects", "num_object_clones", "num_object_copies", "num_objects_degraded"),
}
NEW = {"pool": "fast", "pgs": "16", "replcfg": "copies=3,mincopies=2", "tier": "ssd"}
SURE = {"yes-i-really-mean-it": "yes"}


@pytest.fixture
def listed(answering: Any, pool: DirectoryPool) -> DirectoryPool:
    """The pool `vms` of hv1, which also answers questions about it."""
    commands = PoolCommands({"vms": pool}, Ceph())
    answering.verbs["hv1"] |= {**commands.verbs(), **commands.slow_verbs()}
    return pool


@pytest.fixture
def manager(answering: Any, database: Database) -> Any:
    """hv1 has an account that may change pools."""
    with database.session() as session:
        node = session.get(Node, "hv1")
        node.capabilities = {**node.capabilities, "ceph_manager": True}
    for verb in ("pool.create", "pool.resize", "pool.delete"):
        answering.answers[verb] = {}
    return answering


def made(database: Database) -> list[str]:
    with database.session() as session:
        return sorted(row.name for row in session.query(CephPool))


def test_pool_has_the_shape_clients_read(api: Any, listed: DirectoryPool, expect: Any) -> None:
    listed.create_volume("a", 1024**2)
    [row] = expect(api.get(POOLS), 200)
    assert (row["name"], row["node"], row["driver"], row["tier"]) == ("vms", "hv1", "directory", "default")
    assert (row["pgs"], row["volume_count"], row["error"]) == (0, 1, None)
    assert set(row["stats"]) == STATS
    assert row["stats"]["free_bytes"] > 0
    assert 0 <= row["stats"]["used_percent"] <= 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"limit": "^v"}, 200),
        ({"limit": "x"}, 404),
        ({"limit": "("}, 400),
        ({"node": "hv1"}, 200),
        ({"node": "hv9"}, 400),
    ],
)
def test_filters(api: Any, listed: DirectoryPool, expect: Any, query: dict[str, str], status: int) -> None:
    expect(api.get(POOLS, query), status)


def test_a_pool_that_cannot_say_more_is_shown(
    api: Any, listed: DirectoryPool, expect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise EnvironmentFault("measure it", "does not answer")

    monkeypatch.setattr(listed, "statistics", broken)
    [row] = expect(api.get(POOLS), 200)
    assert "does not answer" in row["error"]
    assert (row["driver"], row["stats"]["free_bytes"]) == ("directory", 1 << 40)
    assert set(row["stats"]) == STATS


def test_a_pool_is_made_resized_and_removed(api: Any, manager: Any, database: Database, expect: Any) -> None:
    expect(api.post(POOLS, NEW), 200)
    assert made(database) == ["fast"]
    expect(api.put(f"{POOLS}/fast", {"pgs": "32"}), 200)
    expect(api.post(POOLS, NEW), 400)
    expect(api.delete(f"{POOLS}/fast", SURE), 200)
    assert made(database) == []
    assert manager.calls == [
        ("pool.create", {"pool": "fast", "pgs": 16, "tier": "ssd", "copies": 3, "mincopies": 2}),
        ("pool.resize", {"pool": "fast", "pgs": 32}),
        ("pool.delete", {"pool": "fast"}),
    ]
    with database.session() as session:
        rows = session.query(Audit).order_by(Audit.id).all()
        found = [(row.method, row.status) for row in rows]
    assert found == [("POST", 200), ("PUT", 200), ("POST", 400), ("DELETE", 200)]


def test_what_the_node_refuses_is_not_written(
    api: Any, manager: Any, database: Database, expect: Any
) -> None:
    manager.answers["pool.create"] = EnvironmentFault("create Ceph pool fast", "no")
    expect(api.post(POOLS, NEW), 500)
    assert made(database) == []
    manager.answers["pool.create"] = {}
    manager.answers["pool.delete"] = EnvironmentFault("remove Ceph pool fast", "no")
    expect(api.post(POOLS, NEW), 200)
    expect(api.delete(f"{POOLS}/fast", SURE), 500)
    assert made(database) == ["fast"]


@pytest.mark.parametrize(
    ("query", "paths"),
    [
        ({}, {"pool", "pgs"}),
        ({"pgs": "0", "replcfg": "three", "tier": "tape", "pool": "a b"}, {"pgs", "replcfg", "tier", "pool"}),
        ({**NEW, "replcfg": "copies=2,mincopies=3"}, {"replcfg"}),
        ({**NEW, "replcfg": "copies=0,mincopies=0"}, {"replcfg"}),
    ],
)
def test_problems(api: Any, manager: Any, expect: Any, query: dict[str, str], paths: set[str]) -> None:
    assert {problem["path"] for problem in expect(api.post(POOLS, query), 400)["problems"]} == paths


def test_without_a_manager(api: Any, listed: DirectoryPool, expect: Any) -> None:
    body = expect(api.post(POOLS, NEW), 400)
    assert "storage.ceph.manager_user" in body["hint"]
    assert body["kind"] == "wrong-state"
    assert "hv1" in expect(api.post(POOLS, {**NEW, "node": "hv1"}), 400)["message"]


def test_configured_pools_are_left_alone(api: Any, manager: Any, expect: Any) -> None:
    for answer in (api.delete(f"{POOLS}/vms", SURE), api.put(f"{POOLS}/vms", {"pgs": "32"})):
        assert "configuration of node hv1" in expect(answer, 400)["message"]
    expect(api.post(POOLS, {**NEW, "pool": "vms"}), 400)
    expect(api.delete(f"{POOLS}/nothing", SURE), 400)
    assert manager.calls == []


def test_removal_must_be_meant(api: Any, manager: Any, expect: Any) -> None:
    expect(api.post(POOLS, NEW), 200)
    for query in ({}, {"yes-i-really-mean-it": "no"}):
        problems = expect(api.delete(f"{POOLS}/fast", query), 400)["problems"]
        assert [problem["path"] for problem in problems] == ["yes-i-really-mean-it"]


def test_pools_that_templates_name_stay(
    api: Any, manager: Any, parts: None, expect: Any, database: Database
) -> None:
    with database.session() as session:
        session.get(Node, "hv1").pools = {}
        session.add(CephPool(name="vms"))
    body = expect(api.delete(f"{POOLS}/vms", SURE), 400)
    assert "storage template disk" in body["message"]
    assert made(database) == ["vms"]


def test_who_may(caller: Any, manager: Any, expect: Any) -> None:
    expect(caller("viewer").post(POOLS, NEW), 403)
    expect(caller("operator").post(POOLS, NEW), 200)


def test_nodes_see_pools_come_and_go(database: Database, settings: dict[str, Any], tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    storage = {"pools": {"vms": {"path": str(tmp_path / "vms")}}, "ceph": {"ceph_conf": str(conf)}}
    config = parse_config({**settings, "storage": storage})
    pools = NodePools(config, database, refresh_s=0)
    with database.session() as session:
        session.add(CephPool(name="fast"))
        session.add(CephPool(name="vms"))
    assert list(pools) == ["vms"]  # without a cluster there is nothing to offer
    conf.touch()
    assert sorted(pools) == ["fast", "vms"]
    assert (pools["fast"].driver, pools["vms"].driver) == ("rbd", "directory")
    assert pools["fast"] is pools["fast"]
    walk = iter(pools.items())
    next(walk)
    with database.session() as session:
        session.query(CephPool).delete()
    assert len(pools) == 1
    assert len(list(walk)) == 1  # what was begun is finished


def test_pools_stay_while_the_database_is_silent(database: Database, config: Config, tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    conf.touch()
    settings = replace(config, storage=Storage(ceph=Ceph(ceph_conf=str(conf))))
    silent = Database(replace(config.database, host="/nonexistent"))
    pools = NodePools(settings, database, refresh_s=0)
    with database.session() as session:
        session.add(CephPool(name="fast"))
    assert list(pools) == ["fast"]
    pools._database = silent
    assert list(pools) == ["fast"]
    silent.close()
