"""Volumes and snapshots: the API, and a node that carries out its commands on pools in directories."""

from pathlib import Path
from typing import Any

import pytest

from pvcapid import storage_nodes
from pvccommon.database import Database
from pvccommon.models import (
    Audit,
    Build,
    BuildState,
    Image,
    ImageVolume,
    Node,
    Resource,
    ResourceState,
    Vm,
    now,
)
from pvccommon.storage import PoolSpace
from pvccommon.storage.directory import DirectoryPool

MIB = 1024**2
VOLUMES, SNAPSHOTS = "/storage/ceph/volume", "/storage/ceph/snapshot"


@pytest.fixture
def second(pool: DirectoryPool, serve_pool: Any, database: Database, tmp_path: Path) -> DirectoryPool:
    """The pool `vms` of another node, hv5."""
    other = DirectoryPool("vms", tmp_path / "hv5")
    serve_pool("hv5", other)
    with database.session() as session:
        first = session.get(Node, "hv1")
        columns = {column.name: getattr(first, column.name) for column in Node.__table__.columns}
        session.add(Node(**{**columns, "name": "hv5"}))
    return other


def add(api: Any, expect: Any, name: str = "golden", size: str = "64M", **more: str) -> None:
    expect(api.post(VOLUMES, {"volume": name, "pool": "vms", "size": size, "force": "False", **more}), 200)


def test_a_volume_from_its_beginning_to_its_end(api: Any, pool: DirectoryPool, expect: Any) -> None:
    query = {"volume": "web1_sda", "pool": "vms", "size": "64mib", "force": "False"}
    assert expect(api.post(VOLUMES, query), 200) == {"message": 'Created volume "vms/web1_sda" of 64M.'}
    [row] = expect(api.get(VOLUMES), 200)
    assert (row["name"], row["pool"], row["node"]) == ("web1_sda", "vms", "hv1")
    stats = row["stats"]
    assert (stats["size"], stats["size_bytes"], stats["format"]) == ("64M", 64 * MIB, "raw")
    assert {"objects", "order", "features", "used_bytes", "parent"} <= set(stats)
    [one] = expect(api.get(f"{VOLUMES}/vms/web1_sda"), 200)
    assert one == {**row, "stats": {**stats, "snapshot_count": 0}}
    expect(api.put(f"{VOLUMES}/vms/web1_sda", {"new_size": "128M", "force": "False"}), 200)
    expect(api.put(f"{VOLUMES}/vms/web1_sda", {"new_name": "web2_sda"}), 200)
    assert pool.stat_volume("web2_sda").size_bytes == 128 * MIB
    expect(api.delete(f"{VOLUMES}/vms/web2_sda"), 200)
    expect(api.get(VOLUMES), 404)
    expect(api.get(f"{VOLUMES}/vms/web2_sda"), 404)


def test_a_snapshot_from_its_beginning_to_its_end(api: Any, pool: DirectoryPool, expect: Any) -> None:
    add(api, expect)
    expect(api.post(SNAPSHOTS, {"pool": "vms", "volume": "golden", "snapshot": "first"}), 200)
    expect(api.put(f"{SNAPSHOTS}/vms/golden/first", {"new_name": "base"}), 200)
    clone = {"new_volume": "web1_sda", "snapshot": "base", "force_flag": "False"}
    assert "not protected" in expect(api.post(f"{VOLUMES}/vms/golden/clone", clone), 400)["message"]
    expect(api.post(f"{SNAPSHOTS}/vms/golden/base/protect"), 200)
    expect(api.post(f"{VOLUMES}/vms/golden/clone", clone), 200)
    assert "web1_sda" in expect(api.post(f"{SNAPSHOTS}/vms/golden/base/unprotect"), 400)["message"]
    [row] = expect(api.get(SNAPSHOTS, {"pool": "vms", "volume": "golden"}), 200)
    assert (row["pool"], row["volume"], row["snapshot"], row["node"]) == ("vms", "golden", "base", "hv1")
    assert row["stats"]["size"] == 64 * MIB
    assert (row["stats"]["protected"], row["stats"]["children"]) == (True, ["web1_sda"])
    assert isinstance(row["stats"]["used"], int)
    [made] = expect(api.get(f"{VOLUMES}/vms/web1_sda"), 200)
    assert (made["stats"]["parent"], made["stats"]["format"]) == ("golden@base", "qcow2")
    assert "flatten" in expect(api.delete(f"{VOLUMES}/vms/golden"), 400)["message"]
    expect(api.post(f"{VOLUMES}/vms/web1_sda/flatten"), 200)
    assert pool.stat_volume("web1_sda").parent is None
    expect(api.post(f"{SNAPSHOTS}/vms/golden/base/rollback"), 200)
    expect(api.post(f"{SNAPSHOTS}/vms/golden/base/unprotect"), 200)
    expect(api.delete(f"{SNAPSHOTS}/vms/golden/base"), 200)
    expect(api.get(SNAPSHOTS), 404)
    expect(api.get(SNAPSHOTS, {"volume": "nothing"}), 404)


def test_a_volume_is_cloned_as_it_is_now(api: Any, pool: DirectoryPool, expect: Any) -> None:
    add(api, expect)
    expect(api.post(f"{VOLUMES}/vms/golden/clone", {"new_volume": "web1_sda", "force_flag": "True"}), 200)
    assert [row["name"] for row in expect(api.get(VOLUMES), 200)] == ["golden", "web1_sda"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"limit": "^web"}, ["web1_sda", "web2_sda"]),
        ({"limit": "2_s.a$"}, ["web2_sda"]),
        ({"pool": "vms", "limit": "old"}, ["golden"]),
        ({"node": "hv1"}, ["golden", "web1_sda", "web2_sda"]),
        ({"limit": "nothing"}, 404),
        ({"limit": "("}, 400),
        ({"pool": "nothing"}, 400),
        ({"node": "hv9"}, 400),
        ({"node": "../x"}, 400),
    ],
)
def test_filters(api: Any, pool: DirectoryPool, expect: Any, query: dict[str, str], names: Any) -> None:
    for name in ("golden", "web1_sda", "web2_sda"):
        pool.create_volume(name, MIB)
    if isinstance(names, int):
        expect(api.get(VOLUMES, query), names)
    else:
        assert [row["name"] for row in expect(api.get(VOLUMES, query), 200)] == names


def test_all_problems_come_at_once(api: Any, pool: DirectoryPool, expect: Any) -> None:
    query = {"volume": "../x", "pool": "nothing", "size": "4X", "force": "perhaps", "colour": "red"}
    problems = {problem["path"] for problem in expect(api.post(VOLUMES, query), 400)["problems"]}
    assert problems == {"volume", "pool", "size", "force", "colour"}
    problems = {problem["path"] for problem in expect(api.put(f"{VOLUMES}/vms/a b"), 400)["problems"]}
    assert problems == {"volume", "new_size"}
    both = {"new_size": "4G", "new_name": "x"}
    assert "only one" in expect(api.put(f"{VOLUMES}/vms/golden", both), 400)["message"]


@pytest.mark.parametrize("path", ["vms/nothing", "nothing/golden"])
def test_what_is_not_there(api: Any, pool: DirectoryPool, expect: Any, path: str) -> None:
    add(api, expect)
    expect(api.get(f"{VOLUMES}/{path}"), 404)
    expect(api.delete(f"{VOLUMES}/{path}"), 400)
    expect(api.post(f"{VOLUMES}/{path}/clone", {"new_volume": "x"}), 400)
    expect(api.delete(f"{SNAPSHOTS}/{path}/base"), 400)
    expect(api.post(f"{SNAPSHOTS}/vms/golden/base/rollback"), 400)


def test_names_are_taken_once(api: Any, pool: DirectoryPool, expect: Any) -> None:
    add(api, expect, "a")
    add(api, expect, "b")
    expect(api.post(VOLUMES, {"volume": "a", "pool": "vms", "size": "1M"}), 400)
    expect(api.put(f"{VOLUMES}/vms/a", {"new_name": "b"}), 400)
    expect(api.post(f"{VOLUMES}/vms/a/clone", {"new_volume": "b"}), 400)


def test_too_full(api: Any, pool: DirectoryPool, expect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "space", lambda: PoolSpace(1000 * MIB, 100 * MIB, 900 * MIB))
    query = {"volume": "a", "pool": "vms", "size": "701M"}
    assert "80%" in expect(api.post(VOLUMES, query), 400)["message"].replace(" %", "%")
    expect(api.post(VOLUMES, {**query, "size": "901M", "force": "True"}), 400)
    expect(api.post(VOLUMES, {**query, "force": "True"}), 200)
    expect(api.put(f"{VOLUMES}/vms/a", {"new_size": "1602M", "force": "True"}), 400)
    expect(api.put(f"{VOLUMES}/vms/a", {"new_size": "1402M", "force": "False"}), 400)
    expect(api.put(f"{VOLUMES}/vms/a", {"new_size": "1402M", "force": "True"}), 200)
    monkeypatch.setattr(pool, "space", lambda: PoolSpace(1000 * MIB, 900 * MIB, 100 * MIB))
    expect(api.post(f"{VOLUMES}/vms/a/clone", {"new_volume": "b"}), 400)
    expect(api.post(f"{VOLUMES}/vms/a/clone", {"new_volume": "b", "force_flag": "True"}), 200)


def test_sizes_shrink_never(api: Any, pool: DirectoryPool, expect: Any) -> None:
    add(api, expect)
    assert "never cut" in expect(api.put(f"{VOLUMES}/vms/golden", {"new_size": "1M"}), 400)["message"]


def add_vm(database: Database, node: str = "hv1") -> None:
    with database.session() as session:
        volumes = [{"pool": "vms", "volume": "web1_sda", "disk_id": "sda"}]
        media = [{"pool": "vms", "volume": "web1_answers", "disk_id": "sdy", "temporary": True}]
        values = {"state": "stop", "memory_mib": 1, "vcpus": 1, "xml": "<domain/>"}
        session.add(Vm(name="web1", node=node, volumes=volumes, media=media, **values))


def add_build(database: Database, state: BuildState = BuildState.QUEUED) -> str:
    with database.session() as session:
        plan = {
            "volumes": [{"pool": "vms", "volume": "web1_sda", "source_volume": "golden"}],
            "cdroms": [{"pool": "vms", "volume": "web1_answers"}],
        }
        build = Build(vm="web1", profile="p", node="hv1", memory_mib=1, plan=plan, state=state.value)
        session.add(build)
        session.flush()
        return build.id


def refusals(api: Any, expect: Any, volume: str) -> list[str]:
    """What is said to whatever would take a volume's name or content away."""
    return [
        expect(answer, 400)["message"]
        for answer in (
            api.delete(f"{VOLUMES}/vms/{volume}"),
            api.put(f"{VOLUMES}/vms/{volume}", {"new_name": "other"}),
            api.post(f"{SNAPSHOTS}/vms/{volume}/base/rollback"),
        )
    ]


def test_disks_of_vms_are_left_alone(
    api: Any, pool: DirectoryPool, database: Database, expect: Any, second: DirectoryPool
) -> None:
    for somewhere in (pool, second):
        somewhere.create_volume("web1_sda", MIB)
        somewhere.create_snapshot("web1_sda", "base")
    add_vm(database)
    on_hv1 = {"node": "hv1"}
    for answer in (
        api.delete(f"{VOLUMES}/vms/web1_sda", on_hv1),
        api.put(f"{VOLUMES}/vms/web1_sda", {"new_name": "other", **on_hv1}),
        api.post(f"{SNAPSHOTS}/vms/web1_sda/base/rollback", on_hv1),
    ):
        body = expect(answer, 400)
        assert "disk of VM web1" in body["why"]
        assert "pvc vm undefine web1" in body["hint"]
    # What takes nothing away is allowed; on the other node the name means another volume.
    expect(api.put(f"{VOLUMES}/vms/web1_sda", {"new_size": "2M", **on_hv1}), 200)
    expect(api.post(f"{VOLUMES}/vms/web1_sda/clone", {"new_volume": "copy", **on_hv1}), 200)
    expect(api.delete(f"{VOLUMES}/vms/web1_sda", {"node": "hv5"}), 200)
    assert pool.volume_or_none("web1_sda")
    assert second.volume_or_none("web1_sda") is None


def test_answers_of_a_vm_are_left_alone(
    api: Any, pool: DirectoryPool, database: Database, expect: Any
) -> None:
    pool.create_volume("web1_answers", MIB)
    add_vm(database)
    assert "disk of VM web1" in expect(api.delete(f"{VOLUMES}/vms/web1_answers"), 400)["why"]


@pytest.mark.parametrize("volume", ["web1_sda", "golden", "web1_answers"])
def test_what_a_build_will_need_is_left_alone(
    api: Any, pool: DirectoryPool, database: Database, expect: Any, volume: str
) -> None:
    pool.create_volume(volume, MIB)
    pool.create_snapshot(volume, "base")
    build = add_build(database)
    assert all(build in message for message in refusals(api, expect, volume))
    with database.session() as session:
        session.get(Build, build).state = BuildState.FAILED.value
    expect(api.delete(f"{VOLUMES}/vms/{volume}"), 200)


def test_names_that_builds_use_are_not_given_away(
    api: Any, pool: DirectoryPool, database: Database, expect: Any
) -> None:
    add(api, expect)
    build = add_build(database)
    attempts = (
        (api.post, VOLUMES, {"volume": "web1_sda", "pool": "vms", "size": "1M"}),
        (api.post, f"{VOLUMES}/vms/golden/clone", {"new_volume": "web1_sda"}),
    )
    for call, path, query in attempts:
        assert build in expect(call(path, query), 400)["message"]
    with database.session() as session:
        session.get(Build, build).state = BuildState.FAILED.value
        row = {"build": build, "seq": 1, "kind": "volume", "name": "vms/web1_sda", "node": "hv1"}
        session.add(Resource(state=ResourceState.HELD.value, **row))
    for call, path, query in attempts:
        assert f"discard {build}" in expect(call(path, query), 400)["message"]
    assert [volume.name for volume in pool.list_volumes()] == ["golden"]


def test_lists_merge_the_nodes(
    api: Any, pool: DirectoryPool, second: DirectoryPool, database: Database, expect: Any
) -> None:
    pool.create_volume("a", MIB)
    pool.create_volume("b", MIB)
    second.create_volume("b", MIB)
    found = [(row["node"], row["name"]) for row in expect(api.get(VOLUMES), 200)]
    assert found == [("hv1", "a"), ("hv1", "b"), ("hv5", "b")]
    assert [row["node"] for row in expect(api.get(VOLUMES, {"node": "hv5"}), 200)] == ["hv5"]
    expect(api.get(f"{VOLUMES}/vms/a"), 200)
    for answer in (
        api.get(f"{VOLUMES}/vms/b"),
        api.delete(f"{VOLUMES}/vms/b"),
        api.post(VOLUMES, {"volume": "c", "pool": "vms", "size": "1M"}),
    ):
        assert "hv1, hv5" in expect(answer, 400)["message"]
    expect(api.delete(f"{VOLUMES}/vms/b", {"node": "hv5"}), 200)
    expect(api.delete(f"{VOLUMES}/vms/b"), 200)
    with database.session() as session:
        session.get(Node, "hv5").heartbeat = now().replace(year=2020)
    expect(api.post(VOLUMES, {"volume": "c", "pool": "vms", "size": "1M"}), 200)
    assert "does not report" in expect(api.get(VOLUMES, {"node": "hv5"}), 400)["message"]


def test_shared_pools_are_asked_once(
    api: Any, pool: DirectoryPool, second: DirectoryPool, answering: Any, database: Database, expect: Any
) -> None:
    with database.session() as session:
        for name, error in (("hv1", "does not answer"), ("hv5", "")):
            report = {"driver": "rbd", "shared": True, "total_bytes": 1, "free_bytes": 1}
            session.get(Node, name).pools = {"vms": {**report, "error": error} if error else report}
    second.create_volume("a", MIB)
    [row] = expect(api.get(VOLUMES), 200)
    assert (row["name"], row["node"]) == ("a", None)
    assert [verb for verb, _ in answering.calls] == ["volume.list"]
    add_vm(database, node="hv9")
    second.create_volume("web1_sda", MIB)
    assert "VM web1" in expect(api.delete(f"{VOLUMES}/vms/web1_sda"), 400)["message"]


def test_volumes_of_images_are_left_alone(
    api: Any, pool: DirectoryPool, database: Database, expect: Any
) -> None:
    pool.create_volume("debian_1", MIB)
    pool.create_snapshot("debian_1", "base")
    pool.protect_snapshot("debian_1", "base")
    with database.session() as session:
        image = Image(name="debian", kind="disk", state="ready", pool="vms", node="hv1", format="raw")
        image.volumes.append(
            ImageVolume(position=0, disk_id="sda", pool="vms", volume="debian_1", size_bytes=1)
        )
        session.add(image)
    assert all("image debian" in message for message in refusals(api, expect, "debian_1"))
    base = f"{SNAPSHOTS}/vms/debian_1/base"
    for answer in (
        api.put(f"{VOLUMES}/vms/debian_1", data={"new_size": "64M"}),
        api.put(base, data={"new_name": "other"}),
        api.post(f"{base}/unprotect"),
        api.delete(base),
    ):
        assert "it is part of image debian" in expect(answer, 400)["message"]
    snapshot = pool.stat_snapshot("debian_1", "base")
    assert snapshot.protected and pool.stat_volume("debian_1").size_bytes == MIB


def test_what_a_viewer_may(caller: Any, pool: DirectoryPool, expect: Any) -> None:
    pool.create_volume("a", MIB)
    viewer, operator = caller("viewer"), caller("operator")
    expect(viewer.get(VOLUMES), 200)
    expect(viewer.delete(f"{VOLUMES}/vms/a"), 403)
    expect(operator.delete(f"{VOLUMES}/vms/a"), 200)


def test_changes_are_written_down(api: Any, pool: DirectoryPool, session: Any, expect: Any) -> None:
    add(api, expect)
    expect(api.delete(f"{VOLUMES}/vms/nothing"), 400)
    rows = session.query(Audit).order_by(Audit.id).all()
    assert [(row.method, row.path.rpartition("volume")[2], row.status) for row in rows] == [
        ("POST", "", 200),
        ("DELETE", "/vms/nothing", 400),
    ]
    assert rows[0].parameters["size"] == "64M"


def test_a_silent_node_is_no_empty_list(
    api: Any, node: str, database: Database, expect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.session() as session:
        session.get(Node, node).name = "hv3"
    monkeypatch.setattr(storage_nodes, "ANSWER_TIMEOUT_S", 0.3)
    assert "hv3" in expect(api.get(VOLUMES), 400)["message"]
