"""`pvc storage`: what is sent for pools, volumes and snapshots, and what is shown."""

import json
from typing import Any

import pytest
from cli_fake_api import FakeApi

from pvc.errors import EXIT_CODES

DONE = {"message": "Done."}
STORAGE = "/storage/ceph"

CHANGES = [
    (
        "pool add vms 128 -t ssd --replcfg copies=2,mincopies=1",
        "POST /pool",
        {"pool": "vms", "pgs": "128", "replcfg": "copies=2,mincopies=1", "tier": "ssd"},
    ),
    (
        "pool add vms 8",
        "POST /pool",
        {"pool": "vms", "pgs": "8", "replcfg": "copies=3,mincopies=2", "tier": "default"},
    ),
    ("pool remove vms -y", "DELETE /pool/vms", {"yes-i-really-mean-it": "yes"}),
    ("pool set-pgs vms 256 -y", "PUT /pool/vms", {"pgs": "256"}),
    (
        "volume add vms data 4G",
        "POST /volume",
        {"pool": "vms", "volume": "data", "size": "4G", "force": "False"},
    ),
    (
        "volume add vms data 4G -f",
        "POST /volume",
        {"pool": "vms", "volume": "data", "size": "4G", "force": "True"},
    ),
    ("volume remove vms data -y", "DELETE /volume/vms/data", {}),
    ("volume resize vms data 8G -f -y", "PUT /volume/vms/data", {"new_size": "8G", "force": "True"}),
    ("volume rename vms data old -y", "PUT /volume/vms/data", {"new_name": "old"}),
    (
        "volume clone vms data copy",
        "POST /volume/vms/data/clone",
        {"new_volume": "copy", "force": "False"},
    ),
    (
        "volume clone vms data copy --snapshot s1 -f",
        "POST /volume/vms/data/clone",
        {"new_volume": "copy", "snapshot": "s1", "force": "True"},
    ),
    ("volume flatten vms copy", "POST /volume/vms/copy/flatten", {}),
    (
        "volume snapshot add vms data s1",
        "POST /snapshot",
        {"pool": "vms", "volume": "data", "snapshot": "s1"},
    ),
    ("volume snapshot rename vms data s1 s2", "PUT /snapshot/vms/data/s1", {"new_name": "s2"}),
    ("volume snapshot remove vms data s1 -y", "DELETE /snapshot/vms/data/s1", {}),
    ("volume snapshot rollback vms data s1 -y", "POST /snapshot/vms/data/s1/rollback", {}),
    ("volume snapshot protect vms data s1", "POST /snapshot/vms/data/s1/protect", {}),
    ("volume snapshot unprotect vms data s1", "POST /snapshot/vms/data/s1/unprotect", {}),
]
ASKING = [line.removesuffix(" -y") for line, _, _ in CHANGES if line.endswith(" -y")]


@pytest.mark.parametrize("node", [None, "hv2"])
@pytest.mark.parametrize(("line", "route", "query"), CHANGES)
def test_changes(
    api: FakeApi, pvc_run: Any, line: str, route: str, query: dict[str, str], node: str | None
) -> None:
    method, _, path = route.partition(" ")
    api.answers[f"{method} {STORAGE}{path}"] = DONE
    result = pvc_run("storage", *line.split(), *(("--node", node) if node else ()))
    assert (result.code, result.out) == (0, "Done.\n"), result.err
    (asked,) = api.asked
    expected = {**query, **({"node": node} if node else {})}
    assert (asked.query, asked.form) == ({key: [value] for key, value in expected.items()}, {})


@pytest.mark.parametrize("line", ASKING)
def test_changes_that_ask(api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    assert len(ASKING) == 7
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    assert pvc_run("storage", *line.split()).code == EXIT_CODES["declined"]
    assert api.asked == []


POOL = {
    "name": "vms",
    "node": None,
    "tier": "ssd",
    "pgs": 128,
    "volume_count": 3,
    "stats": {"id": 1, "free_bytes": 3 << 30, "used_bytes": 1 << 30, "used_percent": 0.25},
}
VOLUME = {
    "name": "web1_sda",
    "pool": "vms",
    "node": "hv1",
    "stats": {
        "size": "5G",
        "size_bytes": 5 << 30,
        "used_bytes": 700 << 20,
        "parent": "golden@base",
        "format": "qcow2",
        "objects": 1280,
        "order": 22,
        "features": ["layering"],
    },
}
SNAPSHOT = {
    "pool": "vms",
    "volume": "golden",
    "snapshot": "base",
    "node": "hv1",
    "stats": {"size": 5 << 30, "used": 1 << 20, "protected": True, "children": ["web1_sda", "web2_sda"]},
}

LISTS = [
    ("pool list", "pool", POOL, "vms", ("128", "1 GiB", "3 GiB", "25.0", "ssd")),
    ("volume list", "volume", VOLUME, "web1_sda", ("5 GiB", "700 MiB", "qcow2", "golden@base", "hv1")),
    ("volume snapshot list", "snapshot", SNAPSHOT, "base", ("golden", "5 GiB", "yes", "web1_sda, web2_sda")),
]


@pytest.mark.parametrize(("line", "path", "row", "name", "texts"), LISTS)
def test_lists_in_every_format(
    api: FakeApi, pvc_run: Any, line: str, path: str, row: dict[str, Any], name: str, texts: tuple[str, ...]
) -> None:
    api.answers[f"GET {STORAGE}/{path}"] = [row]
    command = ("storage", *line.split())
    shown = pvc_run(*command, "^x", "--node", "hv1").out
    assert [text for text in texts if text not in shown] == []
    assert api.asked[-1].query == {"limit": ["^x"], "node": ["hv1"]}
    assert pvc_run(*command, "-f", "raw").out == name + "\n"
    assert json.loads(pvc_run(*command, "--json").out) == [row]
    assert json.loads(pvc_run(*command, "-f", "json-pretty").out) == [row]


def test_lists_are_narrowed(api: FakeApi, pvc_run: Any) -> None:
    for path in ("volume", "snapshot"):
        api.answers[f"GET {STORAGE}/{path}"] = []
    assert pvc_run("storage", "volume", "list", "-p", "vms").err == "no volumes\n"
    assert api.asked[-1].query == {"pool": ["vms"]}
    assert pvc_run("storage", "volume", "snapshot", "list", "-p", "vms", "-o", "golden").code == 0
    assert api.asked[-1].query == {"pool": ["vms"], "volume": ["golden"]}


def test_elements_of_older_servers_are_shown(api: FakeApi, pvc_run: Any) -> None:
    api.answers[f"GET {STORAGE}/volume"] = [
        {"name": "a", "pool": "vms", "stats": {"size": "4G", "format": 2}}
    ]
    api.answers[f"GET {STORAGE}/snapshot"] = [{"pool": "vms", "volume": "a", "snapshot": "s", "stats": None}]
    assert "4G" in pvc_run("storage", "volume", "list").out
    assert pvc_run("storage", "volume", "snapshot", "list").code == 0


def test_info_of_a_volume(api: FakeApi, pvc_run: Any) -> None:
    api.answers[f"GET {STORAGE}/volume/vms/web1_sda"] = [VOLUME]
    shown = pvc_run("storage", "volume", "info", "vms", "web1_sda", "--node", "hv1").out
    assert api.asked[-1].query == {"node": ["hv1"]}
    for text in ("vms/web1_sda", "5 GiB", "700 MiB", "golden@base", "4 MiB"):
        assert text in shown
    assert json.loads(pvc_run("storage", "volume", "info", "vms", "web1_sda", "--json").out) == VOLUME
    assert pvc_run("storage", "volume", "info", "vms", "none").code == EXIT_CODES["not-found"]


def test_info_of_a_pool(api: FakeApi, pvc_run: Any) -> None:
    api.answers[f"GET {STORAGE}/pool"] = [{"name": "vms2"}, POOL]
    shown = pvc_run("storage", "pool", "info", "vms").out
    for text in ("Pool vms", "1 GiB", "3 GiB", "25.0 %"):
        assert text in shown
    assert json.loads(pvc_run("storage", "pool", "info", "vms", "--json").out) == POOL
    assert pvc_run("storage", "pool", "info", "none").code == EXIT_CODES["not-found"]


def test_a_pool_of_several_nodes_needs_the_node(api: FakeApi, pvc_run: Any) -> None:
    api.answers[f"GET {STORAGE}/pool"] = [{"name": "vms", "node": "hv1"}, {"name": "vms", "node": "hv2"}]
    result = pvc_run("storage", "pool", "info", "vms")
    assert result.code == EXIT_CODES["wrong-input"]
    assert "hv1, hv2" in result.err and "--node" in result.err


@pytest.mark.parametrize(("status", "kind"), [(404, "not-found"), (409, "exists"), (507, "no-space")])
def test_refusals_keep_their_kind(api: FakeApi, pvc_run: Any, status: int, kind: str) -> None:
    api.answers[f"POST {STORAGE}/volume"] = ({"message": "no", "kind": kind}, status)
    result = pvc_run("storage", "volume", "add", "vms", "a", "4G")
    assert (result.code, result.err) == (EXIT_CODES[kind], "error: no\n")
