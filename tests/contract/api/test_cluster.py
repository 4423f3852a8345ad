"""VMs, nodes, networks, status."""

from datetime import timedelta
from typing import Any

import pytest

from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault, WrongState
from pvccommon.models import Build, BuildState, Node, Vm, now

XML = """<domain type='qemu'><name>web1</name><memory unit='MiB'>512</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><cpu><topology sockets='1' cores='2' threads='1'/></cpu>
<features><acpi/><apic/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><source file='/pools/vms/web1_sda.raw'/><target dev='sda' bus='scsi'/></disk>
<controller type='scsi' model='virtio-scsi'/><controller type='usb'/>
<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:02'/>
<source bridge='vmbr2040'/><model type='virtio'/></interface>
<console type='pty'/><graphics type='vnc' port='-1' listen='127.0.0.1'/></devices></domain>"""
REQUIRED = {
    *(
        "name",
        "uuid",
        "description",
        "profile",
        "state",
        "node",
        "migrated",
        "last_node",
        "failed_reason",
        "memory",
    ),
    *("vcpu", "tags", "networks", "vnc", "vcpu_topology", "emulator", "type", "arch", "machine", "features"),
    *("memory_stats", "vcpu_stats", "disks", "controllers", "xml"),
}


@pytest.fixture
def vm(database: Database, node: str) -> Vm:
    with database.session() as session:
        plan = {"networks": [{"vni": "upstream", "mac": "52:54:00:00:00:01"}]}
        build = Build(
            vm="web1", profile="p", node=node, memory_mib=1, plan=plan, state=BuildState.SUCCEEDED.value
        )
        session.add(build)
        session.flush()
        vm = Vm(
            name="web1",
            node=node,
            state="start",
            seen="running",
            memory_mib=512,
            vcpus=2,
            xml=XML,
            profile="debian12",
            node_limit="hv1,hv2",
            tags=[{"name": "blue", "type": "user", "protected": False}],
            volumes=[{"pool": "vms", "volume": "web1_sda"}],
            build=build.id,
        )
        session.add(vm)
    return vm


def test_vm_has_the_shape_clients_read(api: Any, vm: Vm, expect: Any) -> None:
    [row] = expect(api.get("/vm", {"negate": "False"}), 200)
    assert set(row) >= REQUIRED
    assert (row["name"], row["state"], row["node"], row["migrated"]) == ("web1", "start", "hv1", "no")
    assert (row["memory"], row["vcpu"], row["vcpu_topology"]) == (512, 2, "1/2/1")
    assert row["node_limit"] == ["hv1", "hv2"]
    assert [(network["type"], network["vni"], network["source"]) for network in row["networks"]] == [
        ("user", "upstream", "user"),
        ("bridge", "2040", "vmbr2040"),
    ]
    assert row["disks"][0]["name"] == "vms/web1_sda"
    assert (row["disks"][0]["type"], row["disks"][0]["dev"], row["disks"][0]["bus"]) == (
        "file",
        "sda",
        "scsi",
    )
    assert row["vnc"] == {"listen": "127.0.0.1", "port": "auto"}
    assert row["controllers"][1] == {"type": "usb", "model": "N/A"}
    assert row["xml"] == XML
    assert expect(api.get("/vm/web1"), 200) == [row]
    assert expect(api.get(f"/vm/{vm.uuid}"), 200) == [row]
    assert expect(api.get(f"/vm/{vm.uuid.upper()}"), 200) == [row]


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "not xml",
        "<domain/>",
        "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain><devices><emulator>&e;</emulator></devices></domain>",
        "<?xml version='1.0' encoding='utf-16'?><domain/>",
    ],
)
def test_odd_documents_of_a_vm(api: Any, vm: Vm, database: Database, expect: Any, xml: str) -> None:
    with database.session() as session:
        session.get(Vm, "web1").xml = xml
    [row] = expect(api.get("/vm/web1"), 200)
    assert set(row) >= REQUIRED
    assert "root:" not in str(row)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"state": "start", "seen": "running"}, "start"),
        ({"state": "start", "seen": "unknown"}, "start"),
        ({"state": "start", "seen": "paused"}, "start"),
        ({"state": "start", "seen": "shutdown"}, "shutdown"),
        ({"state": "start", "seen": "shutoff"}, "stop"),
        ({"state": "start", "seen": "crashed"}, "fail"),
        ({"state": "start", "seen": "missing"}, "fail"),
        ({"state": "start", "seen": "shutoff", "failed_reason": "no"}, "fail"),
        ({"state": "stop", "seen": "shutoff"}, "stop"),
        ({"state": "stop", "seen": "running"}, "shutdown"),
        ({"state": "stop", "seen": "unknown"}, "stop"),
        ({"state": "disable", "seen": "shutoff"}, "disable"),
        ({"state": "provision", "seen": "unknown"}, "provision"),
    ],
)
def test_state_words(
    api: Any, vm: Vm, database: Database, expect: Any, columns: dict[str, str], word: str
) -> None:
    with database.session() as session:
        row = session.get(Vm, "web1")
        for key, value in columns.items():
            setattr(row, key, value)
    assert expect(api.get("/vm/web1"), 200)[0]["state"] == word
    expect(api.get("/vm", {"state": word}), 200)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"limit": "web"}, 200),
        ({"limit": "^web1$"}, 200),
        ({"limit": "^eb"}, 404),
        ({"limit": "w.b[0-9]"}, 200),
        ({"limit": "("}, 400),
        ({"limit": "^(((((a*)*)*)*)*)*$"}, 404),
        ({"limit": "x" * 200}, 400),
        ({"node": "hv1"}, 200),
        ({"node": "hv1", "negate": "True"}, 404),
        ({"node": "hv9"}, 400),
        ({"state": "start"}, 200),
        ({"state": "stop"}, 404),
        ({"state": "dancing"}, 400),
        ({"tag": "blue"}, 200),
        ({"tag": "red"}, 404),
        ({"tag": "red", "negate": "true"}, 200),
        ({"negate": "true"}, 200),
    ],
)
def test_filters_of_vms(api: Any, vm: Vm, expect: Any, query: dict[str, str], status: int) -> None:
    expect(api.get("/vm", query), status)
    if query.get("limit") == "web":
        expect(api.get("/vm", {"limit": vm.uuid}), 200)


def test_no_vms(api: Any, node: str, expect: Any) -> None:
    expect(api.get("/vm"), 404)
    expect(api.get("/vm/web1"), 404)
    expect(api.delete("/vm/web1"), 400)
    expect(api.post("/vm/web1/state", {"state": "start"}), 400)
    expect(api.get("/vm/web1/console"), 404)
    expect(api.get("/vm", {"negate": "False"}), 404)
    assert expect(api.get("/network"), 200) == []


def test_vms_are_changed_by_their_nodes(api: Any, vm: Vm, answering: Any, expect: Any) -> None:
    assert expect(api.post("/vm/web1/state", {"state": "stop", "force": "True"}), 200)["message"] == "Done."
    assert expect(api.delete("/vm/web1", {"delete_disks": "True"}), 200)["message"] == "Removed."
    assert expect(api.get("/vm/web1/console", {"lines": "20"}), 200) == {
        "name": "web1",
        "data": "web1 login: ",
    }
    assert answering.calls == [
        ("vm.state", {"vm": "web1", "state": "stop", "force": True, "wait": False}),
        ("vm.remove", {"vm": "web1", "delete_disks": True}),
        ("vm.console", {"vm": "web1", "lines": 20}),
    ]


def test_what_a_node_refuses_is_told(api: Any, vm: Vm, answering: Any, expect: Any) -> None:
    answering.answers["vm.state"] = WrongState("stop VM web1", "it is being built")
    assert expect(api.post("/vm/web1/state", {"state": "stop"}), 400)["why"] == "it is being built"
    # Existing clients do not show the text of a 5xx answer to GET.
    answering.answers["vm.console"] = EnvironmentFault("read the log", "broken")
    assert "broken" in expect(api.get("/vm/web1/console"), 400)["message"]
    expect(api.post("/vm/web1/state", {"state": "explode"}), 400)
    expect(api.post("/vm/web1/state"), 400)


def test_a_dead_node_is_not_waited_for(
    api: Any, vm: Vm, answering: Any, database: Database, expect: Any
) -> None:
    with database.session() as session:
        session.get(Node, "hv1").heartbeat = now() - timedelta(minutes=5)
    assert "does not report" in expect(api.post("/vm/web1/state", {"state": "stop"}), 400)["message"]
    expect(api.get("/vm/web1/console"), 400)
    assert expect(api.get("/node/hv1"), 200)[0]["daemon_state"] == "dead"
    status = expect(api.get("/status"), 200)
    assert status["cluster_health"]["health"] == 0
    assert "hv1" in status["cluster_health"]["messages"][0]["text"]


@pytest.mark.parametrize("state", ["shutdown", "restart"])
def test_only_running_vms_shut_down(
    api: Any, vm: Vm, answering: Any, database: Database, expect: Any, state: str
) -> None:
    expect(api.post("/vm/web1/state", {"state": state}), 200)
    with database.session() as session:
        session.get(Vm, "web1").seen = "shutoff"
    expect(api.post("/vm/web1/state", {"state": state}), 400)


def test_node_has_the_shape_clients_read(api: Any, vm: Vm, expect: Any) -> None:
    [row] = expect(api.get("/node"), 200)
    assert (row["name"], row["daemon_state"], row["coordinator_state"], row["domain_state"]) == (
        *("hv1", "run", "primary", "ready"),
    )
    assert row["memory"] == {"total": 16384, "allocated": 512, "provisioned": 512, "used": 8192, "free": 8192}
    assert row["vcpu"] == {"total": 8, "allocated": 2}
    assert (row["cpu_count"], row["domains_count"], row["running_domains"]) == (8, 1, ["web1"])
    assert {"kernel", "os", "arch", "load", "health", "pvc_version", "interfaces"} <= set(row)
    assert expect(api.get("/node/hv1"), 200) == [row]
    expect(api.get("/node/hv"), 404)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"limit": "^hv"}, 200),
        ({"limit": "^v"}, 404),
        ({"limit": "["}, 400),
        ({"daemon_state": "run"}, 200),
        ({"daemon_state": "dead"}, 404),
        ({"daemon_state": "dead", "domain_state": "ready"}, 200),
    ],
)
def test_filters_of_nodes(api: Any, node: str, expect: Any, query: dict[str, str], status: int) -> None:
    expect(api.get("/node", query), status)


def test_status_has_the_shape_clients_read(api: Any, vm: Vm, expect: Any) -> None:
    body = expect(api.get("/status"), 200)
    assert body["cluster_name"] == "pvc"
    assert body["cluster_health"] == {"health": 100, "messages": []}
    assert body["maintenance"] == "false"
    assert body["nodes"] == {"total": 1, "run,ready": 1}
    assert body["vms"] == {"total": 1, "start": 1}
    assert (body["networks"], body["pools"], body["volumes"]) == (0, 1, 1)
    assert set(body["resources"]) == {"memory", "cpu", "disk"}
    assert body["resources"]["disk"]["total"] == 2 << 30
    assert expect(api.get("/status/primary_node"), 200) == {"primary_node": "hv1"}
    assert "not supported" in expect(api.post("/status", {"state": "true"}), 400)["message"]


def test_a_pool_that_nodes_share_counts_once(api: Any, vm: Vm, database: Database, expect: Any) -> None:
    shared = {"driver": "rbd", "shared": True, "total_bytes": 4 << 40, "free_bytes": 1 << 40}
    own = {"driver": "directory", "shared": False, "total_bytes": 2 << 40, "free_bytes": 1 << 40}
    broken = {**shared, "total_bytes": 0, "free_bytes": 0, "error": "does not answer"}
    with database.session() as session:
        first = session.get(Node, "hv1")
        columns = {column.name: getattr(first, column.name) for column in Node.__table__.columns}
        first.pools = {"ceph": broken, "vms": own}
        for name in ("hv2", "hv3"):
            session.add(Node(**{**columns, "name": name, "pools": {"ceph": shared, "vms": own}}))
    body = expect(api.get("/status"), 200)
    assert body["pools"] == 2
    assert body["resources"]["disk"]["total"] == (4 + 3 * 2) << 30
    assert body["resources"]["disk"]["free"] == (1 + 3 * 1) << 30


def test_an_empty_cluster(api: Any, expect: Any) -> None:
    assert expect(api.get("/status"), 200)["nodes"] == {"total": 0}
    assert expect(api.get("/status/primary_node"), 200) == {"primary_node": "api1"}
    expect(api.get("/node"), 404)
