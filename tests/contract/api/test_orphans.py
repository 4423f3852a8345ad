"""What nodes find is put together; only what still is an orphan is removed."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault
from pvccommon.models import Node


def orphan(volume: str = "web1_sda", node: str | None = "hv1") -> dict[str, Any]:
    """As a node gives it."""
    name = f"vms/{volume}"
    found = {"kind": "volume", "node": node, "name": name, "why": "nobody", "source": name}
    inner = {"pool": "vms", "inner": volume, "size_bytes": 1 << 30, "used_bytes": 0}
    return {"id": f"volume:{node or ''}:vms:{volume}", **found, **inner}


def test_none_is_an_empty_list(api: Any, answering: Any, expect: Any) -> None:
    assert expect(api.get("/orphans"), 200) == []
    assert answering.calls == [("orphans.list", {"pools": ["vms"]})]


def test_orphans_are_shown(api: Any, answering: Any, expect: Any) -> None:
    words = {"kind": "domain", "name": "web1", "id": "domain:hv1::web1/1"}
    domain = {**orphan(), **words, "size_bytes": None, "used_bytes": None, "source": None}
    answering.answers["orphans.list"] = {"orphans": [orphan(), domain], "named": []}
    shown = expect(api.get("/orphans"), 200)
    assert shown[0] == {
        "id": "volume:hv1:vms:web1_sda",
        "kind": "volume",
        "node": "hv1",
        "name": "vms/web1_sda",
        "size_bytes": 1 << 30,
        "used_bytes": 0,
        "why": "nobody",
    }
    assert [(one["kind"], one["size_bytes"]) for one in shown] == [("volume", 1 << 30), ("domain", None)]


def test_a_node_that_cannot_look_is_told(api: Any, answering: Any, expect: Any) -> None:
    answering.answers["orphans.list"] = EnvironmentFault("list volumes", "the cluster does not answer")
    refused = expect(api.get("/orphans"), 400)
    assert "node hv1" in refused["message"] and "does not answer" in refused["message"]


def test_dead_nodes_are_not_asked(api: Any, answering: Any, database: Database, expect: Any) -> None:
    with database.session() as session:
        session.get(Node, "hv1").stopped = True
    assert expect(api.get("/orphans"), 200) == []
    assert answering.calls == []


def test_only_orphans_are_removed(api: Any, answering: Any, expect: Any) -> None:
    answering.answers["orphans.list"] = {"orphans": [orphan(), orphan("web2_sda")], "named": []}
    ids = ["volume:hv1:vms:web1_sda", "volume:hv1:vms:web2_sda"]
    refusal = {"id": ids[1], "message": "it is open"}
    answering.answers["orphans.remove"] = {"removed": ids[:1], "failed": [refusal]}
    body = expect(api.delete("/orphans", {"orphan": [*ids, ids[0], "volume:hv1:vms:db1_sda"]}), 200)
    assert answering.calls[-1] == ("orphans.remove", {"pools": ["vms"], "ids": ids})
    assert (body["message"], body["removed"]) == ("Removed 1 of 3 orphans.", ids[:1])
    assert [failure["id"] for failure in body["failed"]] == ["volume:hv1:vms:db1_sda", ids[1]]
    assert "volume:hv1:vms:db1_sda is no orphan" in body["failed"][0]["message"]


def test_a_node_that_fails_has_removed_nothing(api: Any, answering: Any, expect: Any) -> None:
    answering.answers["orphans.list"] = {"orphans": [orphan()], "named": []}
    answering.answers["orphans.remove"] = EnvironmentFault("x", "libvirt does not answer")
    body = expect(api.delete("/orphans", {"orphan": orphan()["id"]}), 200)
    assert body["removed"] == []
    assert "libvirt does not answer" in body["failed"][0]["message"]


def test_nothing_named_is_nothing_removed(api: Any, answering: Any, expect: Any) -> None:
    assert expect(api.delete("/orphans"), 400)["kind"] == "wrong-input"
    assert answering.calls == []


@pytest.mark.parametrize(("role", "get", "delete"), [("viewer", 200, 403), ("operator", 200, 403)])
def test_removing_is_for_administrators(
    caller: Callable[[str], Any], answering: Any, expect: Any, role: str, get: int, delete: int
) -> None:
    who = caller(role)
    expect(who.get("/orphans"), get)
    expect(who.delete("/orphans", {"orphan": "x"}), delete)


def copy_node(session: Session, name: str) -> None:
    old = session.get(Node, "hv1")
    columns = {column.name: getattr(old, column.name) for column in Node.__table__.columns}
    session.add(Node(**{**columns, "name": name}))


def test_shared_pools_are_looked_into_once_and_all_domains_count(
    app: Any, api: Any, answering: Any, database: Database, expect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a second node: only the first is asked about the shared pool, but both what their domains name."""
    with database.session() as session:
        shared = {"driver": "rbd", "shared": True, "total_bytes": 1, "free_bytes": 1}
        session.get(Node, "hv1").pools = {"vms": shared, "own": {**shared, "shared": False}}
        copy_node(session, "hv2")
    asked = []

    def call(_queue: Any, node: str, verb: str, arguments: Any, _timeout_s: float) -> Any:
        asked.append((node, verb, arguments["pools"]))
        found = [orphan(node=None), orphan("web2_sda", node=None)] if node == "hv1" else []
        return {"orphans": found, "named": ["vms/web2_sda"] if node == "hv2" else []}

    monkeypatch.setattr("pvcapid.orphans.call_node", call)
    shown = expect(api.get("/orphans"), 200)
    assert sorted(asked) == [("hv1", "orphans.list", ["vms", "own"]), ("hv2", "orphans.list", ["own"])]
    assert [(one["name"], one["node"]) for one in shown] == [("vms/web1_sda", None)]
