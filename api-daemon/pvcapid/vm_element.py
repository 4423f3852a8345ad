"""The shape of a VM in answers, and the word for its state."""

from collections.abc import Iterable, Mapping
from typing import Any

from marshmallow import Schema, fields

from pvcapid.domain_xml import describe_domain
from pvcapid.fields import documented
from pvccommon import names
from pvccommon.models import Vm

VM_STATES = ("start", "stop", "shutdown", "disable", "fail", "provision")


class VmElement(Schema):
    name = fields.String()
    uuid = fields.String()
    description = fields.String()
    profile = fields.String()
    state = fields.String(metadata=documented(", ".join(VM_STATES)))
    node = fields.String()
    migrated = fields.String()
    last_node = fields.String()
    failed_reason = fields.String()
    node_limit = fields.List(fields.String(), allow_none=True)
    node_selector = fields.String(allow_none=True)
    node_autostart = fields.Boolean()
    migration_method = fields.String(allow_none=True)
    migration_max_downtime = fields.Integer()
    memory = fields.Integer(metadata=documented("MiB"))
    vcpu = fields.Integer()
    tags = fields.List(fields.Dict())
    snapshots = fields.List(fields.Dict())
    networks = fields.List(fields.Dict())
    disks = fields.List(fields.Dict())
    controllers = fields.List(fields.Dict())
    vnc = fields.Dict()
    vcpu_topology = fields.String()
    emulator = fields.String()
    type = fields.String()
    arch = fields.String()
    machine = fields.String()
    features = fields.List(fields.String())
    memory_stats = fields.Dict()
    vcpu_stats = fields.Dict()
    console = fields.String()
    xml = fields.String()
    build = fields.String(allow_none=True, metadata=documented("id of the task that made it"))
    seen = fields.String(metadata=documented("the state as libvirt has it"))
    created = fields.String()


def vm_state(vm: Vm) -> str:
    """One of the words existing clients know, from what is wanted and what libvirt shows."""
    if vm.state in ("provision", "disable"):
        return vm.state
    if vm.failed_reason or vm.seen in ("crashed", "missing"):
        return "fail"
    if vm.seen == "shutoff":
        return "stop"
    if vm.seen == "shutdown" or (vm.state == "stop" and vm.seen != "unknown"):
        return "shutdown"
    return vm.state


def vm_element(vm: Vm, networks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything of a VM; `networks` are those of the plan it was made from."""
    vnis = {str(network.get("mac", "")): str(network["vni"]) for network in networks}
    devices = {item["volume"].removeprefix(names.volume_name(vm.name, "")): item for item in vm.volumes}
    volumes = {device: f"{item['pool']}/{item['volume']}" for device, item in devices.items()}
    columns = (
        *(
            "name",
            "uuid",
            "description",
            "profile",
            "node",
            "failed_reason",
            "node_selector",
            "node_autostart",
        ),
        *("migration_method", "migration_max_downtime", "tags", "xml", "build", "seen"),
    )
    return {
        **{column: getattr(vm, column) for column in columns},
        "state": vm_state(vm),
        "migrated": "no",
        "last_node": "",
        "node_limit": vm.node_limit.split(",") if vm.node_limit else None,
        "memory": vm.memory_mib,
        "vcpu": vm.vcpus,
        "snapshots": [],
        "memory_stats": {},
        "vcpu_stats": {},
        "created": vm.created.isoformat(),
        **describe_domain(vm.xml, vnis, volumes),
    }
