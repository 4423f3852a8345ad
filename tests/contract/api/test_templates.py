"""Templates: shapes, codes, asymmetries of the contract, and everything that is refused."""

from typing import Any

import pytest

SYSTEM = {"name": "small", "vcpus": "2", "vram": "2048", "serial": "True", "vnc": "False"}
SYSTEM_PATH = "/provisioner/template/system"
NETWORK_PATH = "/provisioner/template/network"
STORAGE_PATH = "/provisioner/template/storage"


def problems(answer: Any) -> set[str]:
    return {problem["path"] for problem in answer["problems"]}


def test_system_template_has_the_shape_clients_read(api: Any, expect: Any) -> None:
    assert isinstance(expect(api.post(SYSTEM_PATH, SYSTEM), 200)["message"], str)
    assert expect(api.get(SYSTEM_PATH), 200) == [
        {
            "id": 1,
            "name": "small",
            "vcpu_count": 2,
            "vram_mb": 2048,
            "serial": True,
            "vnc": False,
            "vnc_bind": None,
            "node_limit": None,
            "node_selector": None,
            "node_autostart": False,
            "migration_method": None,
            "migration_max_downtime": 300,
            "ova": None,
        }
    ]
    assert expect(api.get(f"{SYSTEM_PATH}/small"), 200) == expect(api.get(SYSTEM_PATH), 200)


def test_system_template_takes_what_the_client_sends(api: Any, expect: Any) -> None:
    sent = {**SYSTEM, "vnc": "True", "vnc_bind": "0.0.0.0", "node_limit": "hv1, hv2", "node_selector": "none"}
    sent |= {"node_autostart": "True", "migration_method": "live", "migration_max_downtime": "500"}
    expect(api.post(SYSTEM_PATH, sent), 200)
    [row] = expect(api.get(SYSTEM_PATH), 200)
    assert (row["vnc_bind"], row["node_limit"], row["node_selector"]) == ("0.0.0.0", "hv1,hv2", None)
    assert (row["node_autostart"], row["migration_method"], row["migration_max_downtime"]) == (
        True,
        "live",
        500,
    )
    expect(api.put(f"{SYSTEM_PATH}/small", {"vram": "4096", "vnc": "no", "node_selector": "mem"}), 200)
    [row] = expect(api.get(SYSTEM_PATH), 200)
    assert (row["vram_mb"], row["vcpu_count"]) == (4096, 2)
    assert (row["vnc"], row["vnc_bind"], row["node_selector"]) == (False, None, "mem")


@pytest.mark.parametrize("way", ["query", "form", "json"])
def test_parameters_are_taken_from_everywhere(api: Any, expect: Any, way: str) -> None:
    sent: Any = {**SYSTEM, "vcpus": 2, "serial": True} if way == "json" else SYSTEM
    expect(api.post(SYSTEM_PATH, **{way: sent}), 200)
    assert expect(api.get(SYSTEM_PATH), 200)[0]["vcpu_count"] == 2


@pytest.mark.parametrize("word", ["y", "Yes", "t", "TRUE", "on", "1", "n", "no", "F", "false", "Off", "0"])
def test_every_spelling_of_a_boolean_is_understood(api: Any, expect: Any, word: str) -> None:
    expect(api.post(SYSTEM_PATH, {**SYSTEM, "serial": word}), 200)
    assert expect(api.get(SYSTEM_PATH), 200)[0]["serial"] is (
        word.lower() in ("y", "yes", "t", "true", "on", "1")
    )


def test_all_problems_are_told_at_once(api: Any, expect: Any) -> None:
    sent = {"name": "a b", "vcpus": "two", "vram": "0", "serial": "perhaps", "vnc_bind": "here", "nod": "x"}
    sent |= {
        "node_selector": "best",
        "node_limit": "hv 1",
        "migration_method": "fly",
        "migration_max_downtime": "-1",
    }
    answer = expect(api.post(SYSTEM_PATH, sent), 400)
    assert problems(answer) == {*sent, "vnc"}
    assert answer["kind"] == "wrong-input"
    expect(api.get(SYSTEM_PATH), 404)


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": "0"},
        {"vcpus": "1025"},
        {"vcpus": "1.5"},
        {"vcpus": "9" * 40},
        {"vram": "-5"},
        {"vram": "99999999999"},
        {"name": "../x"},
        {"name": "-x"},
        {"name": "x" * 65},
        {"name": "ümläut"},
        {"name": ""},
    ],
)
def test_bad_values_are_refused(api: Any, expect: Any, change: dict[str, str]) -> None:
    assert problems(expect(api.post(SYSTEM_PATH, {**SYSTEM, **change}), 400)) == set(change)


def test_names_are_taken_once(api: Any, expect: Any) -> None:
    expect(api.post(SYSTEM_PATH, SYSTEM), 200)
    assert expect(api.post(SYSTEM_PATH, SYSTEM), 400)["kind"] == "exists"
    for path in (NETWORK_PATH, STORAGE_PATH):
        expect(api.post(path, {"name": "same"}), 200)
        assert expect(api.post(path, {"name": "same"}), 400)["kind"] == "exists"


@pytest.mark.parametrize("path", [SYSTEM_PATH, NETWORK_PATH, STORAGE_PATH])
def test_absent_templates(api: Any, expect: Any, path: str) -> None:
    expect(api.get(path), 404)
    expect(api.get(f"{path}/none"), 404)
    expect(api.delete(f"{path}/none"), 400)
    expect(api.put(f"{SYSTEM_PATH}/none", {"vcpus": 1}), 404)


def test_filters_have_anchors_and_no_wildcards(api: Any, expect: Any) -> None:
    for name in ("web", "web_1", "a.web", "webs", "web%1"):
        expect(api.post(NETWORK_PATH, {"name": name}), 400 if "%" in name else 200)

    def found(limit: str) -> list[str]:
        answer = api.get(NETWORK_PATH, {"limit": limit})
        return [row["name"] for row in answer.json] if answer.status_code == 200 else []

    assert found("web") == ["a.web", "web", "web_1", "webs"]
    assert found("^web") == ["web", "web_1", "webs"]
    assert found("web$") == ["a.web", "web"]
    assert found("^web$") == ["web"]
    assert found("_") == ["web_1"]
    assert found("%") == []
    assert found(".") == ["a.web"]
    expect(api.get(f"{NETWORK_PATH}/we%25"), 404)
    expect(api.get(f"{NETWORK_PATH}/web_"), 404)


def test_networks_keep_the_order_of_their_addition(api: Any, expect: Any) -> None:
    expect(api.post(NETWORK_PATH, {"name": "lan", "mac_template": "{prefix}:0a:17:{vmid}{netid}"}), 200)
    for vni in ("upstream", "2040", "100"):
        expect(api.post(f"{NETWORK_PATH}/lan/net/{vni}"), 200)
    expect(api.post(f"{NETWORK_PATH}/lan/net/100"), 400)
    expect(api.post(f"{NETWORK_PATH}/lan/net/100", {"permit_duplicate": "True"}), 200)
    [row] = expect(api.get(NETWORK_PATH), 200)
    assert set(row) == {"id", "name", "mac_template", "ova", "networks"}
    assert [network["vni"] for network in row["networks"]] == ["upstream", "2040", "100", "100"]
    assert row["networks"][0] == {"id": 1, "network_template": 1, "vni": "upstream"}
    expect(api.delete(f"{NETWORK_PATH}/lan/net/100"), 200)
    assert len(expect(api.get(NETWORK_PATH), 200)[0]["networks"]) == 2
    expect(api.delete(f"{NETWORK_PATH}/lan/net/100"), 400)
    expect(api.delete(f"{NETWORK_PATH}/lan"), 200)
    expect(api.get(NETWORK_PATH), 404)


@pytest.mark.parametrize("vni", ["0", "-1", "16777216", "lan", "1e3", "%2e%2e", "1 2"])
def test_bad_networks_are_refused(api: Any, expect: Any, vni: str) -> None:
    expect(api.post(NETWORK_PATH, {"name": "lan"}), 200)
    expect(api.post(f"{NETWORK_PATH}/lan/net/{vni}"), 400)
    assert expect(api.get(NETWORK_PATH), 200)[0]["networks"] == []


@pytest.mark.parametrize("template", ["x", "{prefix}", "{prefix}:00:00:{other}{netid}", "01:00:00:00:00:00"])
def test_bad_mac_templates_are_refused(api: Any, expect: Any, template: str) -> None:
    answer = expect(api.post(NETWORK_PATH, {"name": "lan", "mac_template": template}), 400)
    assert problems(answer) == {"mac_template"}


def test_disks_have_the_shape_clients_read(api: Any, expect: Any) -> None:
    expect(api.post(STORAGE_PATH, {"name": "disks"}), 200)
    root = {"pool": "vms", "disk_size": "20", "filesystem": "ext4", "mountpoint": "/"}
    root["filesystem_arg"] = ["-L=root", "--block-size=4096"]  # type: ignore[assignment]
    expect(api.post(f"{STORAGE_PATH}/disks/disk/sdaa", {"pool": "vms", "disk_size": "1"}), 200)
    expect(api.post(f"{STORAGE_PATH}/disks/disk/sda", root), 200)
    expect(api.post(f"{STORAGE_PATH}/disks/disk/sdb", {"pool": "vms", "source_volume": "golden_sda"}), 200)
    [row] = expect(api.get(STORAGE_PATH), 200)
    assert [disk["disk_id"] for disk in row["disks"]] == ["sda", "sdb", "sdaa"]
    assert row["disks"][0] == {
        "id": 2,
        "storage_template": 1,
        "pool": "vms",
        "disk_id": "sda",
        "source_volume": None,
        "disk_size_gb": 20,
        "mountpoint": "/",
        "filesystem": "ext4",
        "filesystem_args": "-L=root --block-size=4096",
    }
    assert row["disks"][1]["source_volume"] == "golden_sda"
    assert row["disks"][1]["filesystem_args"] == ""
    expect(api.post(f"{STORAGE_PATH}/disks/disk/sda", root), 400)
    expect(api.delete(f"{STORAGE_PATH}/disks/disk/sda"), 200)
    expect(api.delete(f"{STORAGE_PATH}/disks/disk/sda"), 400)
    expect(api.delete(f"{STORAGE_PATH}/disks"), 200)


@pytest.mark.parametrize(
    ("disk", "query", "wrong"),
    [
        ("hda", {"pool": "vms", "disk_size": 1}, {"disk_id"}),
        ("sda1", {"pool": "vms", "disk_size": 1}, {"disk_id"}),
        ("sda", {"pool": "vms"}, {"disk_size"}),
        ("sda", {"disk_size": 1}, {"pool"}),
        ("sda", {"pool": "nope", "disk_size": 1}, {"pool"}),
        ("sda", {"pool": "a/b", "disk_size": 1}, {"pool"}),
        ("sda", {"pool": "vms", "disk_size": 0}, {"disk_size"}),
        ("sda", {"pool": "vms", "disk_size": 999999}, {"disk_size"}),
        ("sda", {"pool": "vms", "disk_size": "big"}, {"disk_size"}),
        ("sda", {"pool": "vms", "disk_size": 1, "filesystem": "ntfs"}, {"filesystem"}),
        ("sda", {"pool": "vms", "disk_size": 1, "mountpoint": "/"}, {"mountpoint"}),
        ("sda", {"pool": "vms", "disk_size": 1, "filesystem_arg": "-L=x"}, {"filesystem_arg"}),
        ("sda", {"pool": "vms", "disk_size": 1, "filesystem": "swap", "mountpoint": "/x"}, {"mountpoint"}),
        ("sda", {"pool": "vms", "source_volume": "x", "disk_size": 1}, {"disk_size"}),
        ("sda", {"pool": "vms", "source_volume": "x", "filesystem": "ext4"}, {"filesystem"}),
        ("sda", {"pool": "vms", "source_volume": "x", "mountpoint": "/"}, {"mountpoint"}),
        ("sda", {"pool": "vms", "source_volume": "-x"}, {"source_volume"}),
        ("sda", {"pool": "vms", "source_volume": "../x"}, {"source_volume"}),
    ],
)  # fmt: skip
def test_bad_disks_are_refused(
    api: Any, node: str, expect: Any, disk: str, query: dict[str, Any], wrong: set[str]
) -> None:
    expect(api.post(STORAGE_PATH, {"name": "disks"}), 200)
    assert problems(expect(api.post(f"{STORAGE_PATH}/disks/disk/{disk}", query), 400)) == wrong
    assert expect(api.get(STORAGE_PATH), 200)[0]["disks"] == []


@pytest.mark.parametrize(
    "path", ["srv", "/srv/", "//srv", "/a/../b", "/a/./b", "/a b", "/proc", "/dev/shm", "/a\tb", "/ä"]
)
def test_bad_mount_points_are_refused(api: Any, expect: Any, path: str) -> None:
    expect(api.post(STORAGE_PATH, {"name": "disks"}), 200)
    query = {"pool": "vms", "disk_size": 1, "filesystem": "ext4", "mountpoint": path}
    assert problems(expect(api.post(f"{STORAGE_PATH}/disks/disk/sda", query), 400)) == {"mountpoint"}


@pytest.mark.parametrize("argument", ["L=root", "-L root", "-L=$(id)", "/dev/sda", "-", "--", "-L=a;b"])
def test_bad_filesystem_arguments_are_refused(api: Any, expect: Any, argument: str) -> None:
    expect(api.post(STORAGE_PATH, {"name": "disks"}), 200)
    query = {"pool": "vms", "disk_size": 1, "filesystem": "ext4", "filesystem_arg": argument}
    assert problems(expect(api.post(f"{STORAGE_PATH}/disks/disk/sda", query), 400)) == {"filesystem_arg[0]"}


def test_mount_points_are_unique(api: Any, expect: Any) -> None:
    expect(api.post(STORAGE_PATH, {"name": "disks"}), 200)
    query = {"pool": "vms", "disk_size": 1, "filesystem": "ext4", "mountpoint": "/srv"}
    expect(api.post(f"{STORAGE_PATH}/disks/disk/sda", query), 200)
    assert problems(expect(api.post(f"{STORAGE_PATH}/disks/disk/sdb", query), 400)) == {"mountpoint"}


def test_templates_in_use_stay(api: Any, profile: str, expect: Any) -> None:
    for path in (
        "template/system/small",
        "template/network/lan",
        "template/storage/disk",
        "userdata/cloud",
        "script/maker",
    ):
        answer = expect(api.delete(f"/provisioner/{path}"), 400)
        assert "debian12" in answer["message"]
        assert answer["kind"] == "wrong-state"
    expect(api.delete("/provisioner/profile/debian12"), 200)
    for path in (
        "template/system/small",
        "template/network/lan",
        "template/storage/disk",
        "userdata/cloud",
        "script/maker",
    ):
        expect(api.delete(f"/provisioner/{path}"), 200)


def test_all_templates_at_once(api: Any, parts: None, expect: Any) -> None:
    answer = expect(api.get("/provisioner/template"), 200)
    assert {key: len(rows) for key, rows in answer.items()} == {
        "system_templates": 1,
        "network_templates": 1,
        "storage_templates": 1,
    }
