"""Templates, documents, profiles, VMs, nodes: what is sent, what is shown."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import FakeApi

DONE = {"message": "Done."}
TEMPLATE = ("provisioner", "template")


def sent(api: FakeApi) -> tuple[str, str, dict[str, list[str]], dict[str, list[str]]]:
    """Method, path, query and form of the last request."""
    asked = api.asked[-1]
    return asked.method, asked.raw_path.removeprefix("/api/v1/provisioner"), asked.query, asked.form


CHANGES = [
    (
        "template system add s1 -u 2 -m 1024 -s -n -b 0.0.0.0 --node-limit a,b",
        "POST /template/system",
        {
            "name": "s1",
            "vcpus": "2",
            "vram": "1024",
            "serial": "True",
            "vnc": "True",
            "vnc_bind": "0.0.0.0",
            "node_limit": "a,b",
            "node_selector": "none",
            "node_autostart": "False",
            "migration_max_downtime": "300",
        },
    ),
    ("template system modify s1 -u 4 -S", "PUT /template/system/s1", {"vcpus": "4", "serial": "False"}),
    ("template system remove s1 -y", "DELETE /template/system/s1", {}),
    (
        "template network add n1 -m {prefix}:00",
        "POST /template/network",
        {"name": "n1", "mac_template": "{prefix}:00"},
    ),
    ("template network vni add n1 100", "POST /template/network/n1/net/100", {}),
    ("template network vni add n1 100 -d", "POST /template/network/n1/net/100", {"permit_duplicate": "True"}),
    ("template network vni remove n1 100 -y", "DELETE /template/network/n1/net/100", {}),
    ("template network remove n1 -y", "DELETE /template/network/n1", {}),
    ("template storage add t1", "POST /template/storage", {"name": "t1"}),
    (
        "template storage disk add t1 sda -p vms -s 5 -f ext4 --fsarg L=root --fsarg block-size=4096 -m /",
        "POST /template/storage/t1/disk/sda",
        {
            "pool": "vms",
            "disk_size": "5",
            "filesystem": "ext4",
            "filesystem_arg": ["-L=root", "--block-size=4096"],
            "mountpoint": "/",
        },
    ),
    ("template storage disk remove t1 sda -y", "DELETE /template/storage/t1/disk/sda", {}),
    ("template storage remove t1 -y", "DELETE /template/storage/t1", {}),
    ("userdata remove u1 -y", "DELETE /userdata/u1", {}),
    ("script remove x1 -y", "DELETE /script/x1", {}),
    (
        "profile add p1 -s s1 -n n1 -t t1 -u u1 -x x1 -i i1 -a a=1 -a b=2=3",
        "POST /profile",
        {
            "name": "p1",
            "profile_type": "provisioner",
            "system_template": "s1",
            "network_template": "n1",
            "storage_template": "t1",
            "userdata": "u1",
            "script": "x1",
            "image": "i1",
            "arg": ["a=1", "b=2=3"],
        },
    ),
    ("profile modify p1 -x x2 -a a=2", "PUT /profile/p1", {"script": "x2", "arg": "a=2"}),
    ("profile remove p1 -y", "DELETE /profile/p1", {}),
]


@pytest.mark.parametrize(("line", "route", "form"), CHANGES)
def test_changes(api: FakeApi, pvc_run: Any, line: str, route: str, form: dict[str, Any]) -> None:
    method, _, path = route.partition(" ")
    api.answers[f"{method} /provisioner{path}"] = DONE
    result = pvc_run("provisioner", *line.split())
    assert (result.code, result.out) == (0, "Done.\n"), result.err
    expected = {key: value if isinstance(value, list) else [value] for key, value in form.items()}
    assert sent(api) == (method, path, {}, expected)


def test_profile_arguments_are_deleted_by_an_empty_list(api: FakeApi, pvc_run: Any) -> None:
    api.answers["PUT /provisioner/profile/p1"] = DONE
    assert pvc_run("provisioner", "profile", "modify", "p1", "-d").code == 0
    assert api.asked[-1].json == {"arg": []}


LISTS = [
    (
        "template system",
        {"name": "s1", "vcpu_count": 2, "vram_mb": 1024, "serial": True, "vnc": False, "vnc_bind": None},
        "1024",
    ),
    (
        "template network",
        {"name": "n1", "mac_template": None, "networks": [{"vni": "100"}, {"vni": "up"}]},
        "100, up",
    ),
    (
        "template storage",
        {"name": "t1", "disks": [{"disk_id": "sda", "pool": "vms"}, {"disk_id": "sdb", "pool": "ssd"}]},
        "sdb",
    ),
    ("userdata", {"name": "u1", "userdata": "1\n2\n3\n4\n5"}, "…"),
    ("script", {"name": "x1", "script": "pass", "summary": "Makes it"}, "Makes it"),
    ("profile", {"name": "p1", "system_template": "s1", "arguments": ["a=1"]}, "a=1"),
]


@pytest.mark.parametrize(("group", "row", "text"), LISTS)
def test_lists_in_every_format(
    api: FakeApi, pvc_run: Any, group: str, row: dict[str, Any], text: str
) -> None:
    path = "/provisioner/" + group.replace(" ", "/")
    api.answers[f"GET {path}"] = [row]
    command = ("provisioner", *group.split(), "list")
    assert text in pvc_run(*command, "^x").out
    assert api.asked[-1].query == {"limit": ["^x"]}
    assert pvc_run(*command, "-f", "raw").out == row["name"] + "\n"
    assert json.loads(pvc_run(*command, "--json").out) == [row]
    assert json.loads(pvc_run(*command, "-f", "json-pretty").out) == [row]


def test_foreign_text_cannot_control_the_terminal(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /provisioner/profile"] = [{"name": "p\x1b]0;title\x07[bold]1\x1b[31m"}]
    assert pvc_run("provisioner", "profile", "list", "-f", "raw").out == "p[bold]1\n"
    assert "p[bold]1" in pvc_run("provisioner", "profile", "list").out


def test_documents_travel_in_the_body_unchanged(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    api.answers["POST /provisioner/script"] = api.answers["PUT /provisioner/script/x1"] = DONE
    source = tmp_path / "x.py"
    source.write_text("\n# ü & = %\nclass VMBuilderScript: ...\n\n")
    assert pvc_run("provisioner", "script", "add", "x1", str(source)).code == 0
    assert sent(api) == ("POST", "/script", {}, {"name": ["x1"], "data": [source.read_text()]})
    assert pvc_run("provisioner", "script", "modify", "x1", str(source)).code == 0
    assert sent(api) == ("PUT", "/script/x1", {}, {"data": [source.read_text()]})


def test_a_script_with_problems(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    problems = [
        {"path": "script:3", "message": "no VMBuilderScript"},
        {"path": "script:9", "message": "bad type"},
    ]
    api.answers["POST /provisioner/script"] = ({"message": "x", "what": "refused", "problems": problems}, 400)
    source = tmp_path / "x.py"
    source.write_text("pass")
    result = pvc_run("provisioner", "script", "add", "x1", str(source))
    assert result.code == 2
    assert "  script:3: no VMBuilderScript\n  script:9: bad type\n" in result.err


def test_unreadable_documents(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    binary, empty, bad = tmp_path / "b", tmp_path / "e", tmp_path / "y"
    binary.write_bytes(b"\xff\xfe")
    empty.write_text(" \n")
    bad.write_text("#cloud-config\na: [\n")
    for path in (binary, empty, bad, tmp_path / "missing"):
        assert pvc_run("provisioner", "userdata", "add", "u", str(path)).code == 2
    assert not api.asked


def test_show_prints_the_document(api: FakeApi, pvc_run: Any) -> None:
    arguments = [
        {"name": "release", "type": "string", "default": "bookworm", "required": False, "help": "Which."},
        {"name": "key", "type": "string", "default": "hidden", "secret": True, "help": "A key."},
    ]
    api.answers["GET /provisioner/script/x1"] = [{"name": "x1", "script": "pass", "arguments": arguments}]
    api.answers["GET /provisioner/userdata/u1"] = [{"name": "u1", "userdata": "#cloud-config\n"}]
    assert pvc_run("provisioner", "script", "show", "x1").out == "pass\n"
    assert pvc_run("provisioner", "userdata", "show", "u1").out == "#cloud-config\n"
    shown = pvc_run("provisioner", "script", "show", "x1", "--arguments").out
    assert "bookworm" in shown and "Which." in shown and "hidden" not in shown
    assert pvc_run("provisioner", "script", "show", "x1", "--arguments", "-f", "raw").out == "release\nkey\n"
    assert pvc_run("provisioner", "script", "show", "none").code == 3


def test_editor_shows_the_difference_and_asks(
    api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["GET /provisioner/userdata/u1"] = [{"name": "u1", "userdata": "a\n"}]
    api.answers["PUT /provisioner/userdata/u1"] = DONE
    monkeypatch.setattr("click.edit", lambda *_, **__: "b\n")
    result = pvc_run("provisioner", "userdata", "modify", "u1", "-e", "-y")
    assert result.code == 0
    assert "-a\n+b\n" in result.out
    assert sent(api)[3] == {"data": ["b\n"]}


REMOVALS = [
    ("vm remove web1", "DELETE /vm/web1", {"delete_disks": ["True"]}),
    ("vm undefine web1", "DELETE /vm/web1", {"delete_disks": ["False"]}),
    ("vm stop web1", "POST /vm/web1/state", {}),
    ("vm restart web1", "POST /vm/web1/state", {}),
    ("vm shutdown web1", "POST /vm/web1/state", {}),
    ("provisioner profile remove p1", "DELETE /provisioner/profile/p1", {}),
]


@pytest.mark.parametrize(("line", "route", "query"), REMOVALS)
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 13), ("\n", 13), ("", 13)])
def test_confirmation(
    api: FakeApi,
    pvc_run: Any,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    route: str,
    query: dict[str, list[str]],
    answer: str,
    code: int,
) -> None:
    api.answers[route] = DONE
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    result = pvc_run(*line.split())
    assert result.code == code
    assert [asked.query for asked in api.requests_to(route)] == ([query] if code == 0 else [])


@pytest.mark.parametrize("arguments", [("-u", "vm", "remove", "web1"), ("vm", "remove", "-y", "web1")])
def test_confirmation_can_be_given_before(api: FakeApi, pvc_run: Any, arguments: tuple[str, ...]) -> None:
    api.answers["DELETE /vm/web1"] = DONE
    assert pvc_run(*arguments).code == 0


def test_vm_states(api: FakeApi, pvc_run: Any) -> None:
    api.answers["POST /vm/web1/state"] = DONE
    pvc_run("vm", "start", "web1", "--force")
    assert api.asked[-1].form == {"state": ["start"], "force": ["True"]}
    pvc_run("vm", "shutdown", "web1", "-y", "-w")
    assert api.asked[-1].form == {"state": ["shutdown"], "wait": ["True"]}


VM = {
    "name": "web1",
    "uuid": "u",
    "state": "start",
    "node": "hv1",
    "memory": 1024,
    "vcpu": 2,
    "networks": [{"vni": "100", "mac": "52:54:00:00:00:01", "model": "virtio"}],
    "disks": [{"dev": "sda", "name": "vms/web1_sda", "bus": "scsi"}],
    "tags": [{"name": "t"}],
    "vnc": {"listen": None, "port": None},
    "xml": "<domain/>",
}


def test_vm_list_info_dump(api: FakeApi, pvc_run: Any, tmp_path: Path) -> None:
    api.answers["GET /vm"] = [VM]
    api.answers["GET /vm/web1"] = [VM]
    assert "hv1" in pvc_run("vm", "list", "-t", "hv1", "-s", "start", "-n").out
    assert api.asked[-1].query == {"node": ["hv1"], "state": ["start"], "negate": ["True"]}
    for form in ("pretty", "long"):
        assert "vms/web1_sda" in pvc_run("vm", "info", "web1", "-f", form).out
    assert json.loads(pvc_run("vm", "info", "web1", "--json").out) == VM
    assert pvc_run("vm", "dump", "web1").out == "<domain/>\n"
    assert pvc_run("vm", "dump", "web1", "-f", str(tmp_path / "x")).code == 0
    assert (tmp_path / "x").read_text() == "<domain/>\n"
    assert pvc_run("vm", "info", "web2").code == 3


def test_vm_log(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /vm/web1/console"] = {"name": "web1", "data": "a\nlogin: "}
    assert pvc_run("vm", "log", "web1", "-l", "5").out == "a\nlogin: "
    assert api.asked[-1].query == {"lines": ["5"]}


def test_nodes_and_status(api: FakeApi, pvc_run: Any) -> None:
    node = {"name": "hv1", "daemon_state": "run", "memory": {"total": 100}, "load": 0.5}
    api.answers["GET /node"] = api.answers["GET /node/hv1"] = [node]
    api.answers["GET /status"] = {
        "cluster_name": "c1",
        "cluster_health": {"health": 100, "messages": []},
        "maintenance": "false",
        "nodes": {"total": 1, "run,ready": 1},
    }
    assert "hv1" in pvc_run("node", "list", "-ds", "run").out
    assert api.asked[-1].query == {"daemon_state": ["run"]}
    assert "0.5" in pvc_run("node", "info", "hv1", "-f", "long").out
    assert "1 (run,ready 1)" in pvc_run("cluster", "status").out
    assert pvc_run("cluster", "status", "-f", "short").out == "c1: health 100 %, maintenance false\n"


def test_quiet_and_silent(api: FakeApi, pvc_run: Any) -> None:
    api.answers["GET /vm/web1/console"] = {"data": "a\n"}
    result = pvc_run("-q", "vm", "info", "none")
    assert (result.code, result.err) == (3, "")
    result = pvc_run("-s", "vm", "log", "web1")
    assert (result.code, result.out, result.err) == (0, "", "")
