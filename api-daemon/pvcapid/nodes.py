"""Nodes: the hypervisors, as they last reported themselves."""

from collections.abc import Collection
from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from pvcapid.endpoint import endpoint
from pvcapid.fields import NoParameters, Text, documented
from pvcapid.look_up import names_matching
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvccommon.errors import NotFound
from pvccommon.models import Node, Vm
from pvccommon.placement import alive_nodes

blueprint = Blueprint("nodes", __name__)
FILTERS = ("daemon_state", "coordinator_state", "domain_state")


class NodeFilter(Schema):
    limit = Text(longest=128, metadata=documented("regular expression on the name"))
    daemon_state = Text(longest=32, metadata=documented("run, stop or dead"))
    coordinator_state = Text(longest=32, metadata=documented("primary or hypervisor"))
    domain_state = Text(longest=32, metadata=documented("ready"))


class NodeElement(Schema):
    name = fields.String()
    daemon_state = fields.String()
    coordinator_state = fields.String()
    domain_state = fields.String()
    pvc_version = fields.String()
    cpu_count = fields.Integer()
    kernel = fields.String()
    os = fields.String()
    arch = fields.String()
    health = fields.Integer()
    health_plugins = fields.List(fields.String())
    health_details = fields.List(fields.Dict())
    load = fields.Float()  # type: ignore[assignment]  # the metaclass takes fields out of the class
    domains_count = fields.Integer()
    running_domains = fields.List(fields.String())
    vcpu = fields.Dict(metadata=documented("total, allocated"))
    memory = fields.Dict(metadata=documented("total, allocated, provisioned, used, free; MiB"))
    interfaces = fields.Dict()
    heartbeat = fields.String(metadata=documented("when it last reported"))
    pools = fields.Dict()
    networks = fields.Dict()
    filesystems = fields.List(fields.String())
    capabilities = fields.Dict()


@blueprint.get("/node")
@endpoint(NodeFilter, NodeElement, many=True)
def list_nodes(given: Given) -> Any:
    """List nodes. State filters are joined by "or", as existing clients expect."""
    with reading() as session:
        elements = node_elements(session)
        if given.get("limit"):
            wanted = names_matching(session, Node.name, given["limit"])
            elements = [element for element in elements if element["name"] in wanted]
    states = {key: given[key] for key in FILTERS if key in given}
    if states:
        elements = [e for e in elements if any(e[key] == value for key, value in states.items())]
    if not elements:
        raise NotFound("list nodes", "none matches" if given else "no node has reported yet")
    return elements


@blueprint.get("/node/<name>")
@endpoint(NoParameters, NodeElement, many=True)
def get_node(given: Given, name: str) -> Any:
    """Show a node."""
    with reading() as session:
        found = [element for element in node_elements(session) if element["name"] == name]
    if not found:
        raise NotFound(f"find node {name}", "there is no such node", "see the list of nodes")
    return found


def node_elements(session: Session) -> list[dict[str, Any]]:
    """All nodes, by name."""
    nodes = session.execute(select(Node).order_by(Node.name)).scalars().all()
    alive = alive_nodes(session, services().config.node.dead_after)
    vms = session.execute(select(Vm).options(defer(Vm.xml), defer(Vm.userdata))).scalars().all()
    primary = primary_node(alive)
    return [
        _element(node, [vm for vm in vms if vm.node == node.name], primary, alive=node.name in alive)
        for node in nodes
    ]


def primary_node(alive: Collection[str]) -> str:
    """There are no coordinators here; existing clients ask for one, and get the first node that runs."""
    return min(alive, default=services().config.node.name)


def _element(node: Node, vms: list[Vm], primary: str, *, alive: bool) -> dict[str, Any]:
    running = [vm for vm in vms if vm.seen in ("running", "paused", "shutdown")]
    return {
        **{key: getattr(node, key) for key in ("name", "kernel", "os", "load")},
        **{key: getattr(node, key) for key in ("pools", "networks", "filesystems", "capabilities")},
        "daemon_state": "run" if alive else "stop" if node.stopped else "dead",
        "coordinator_state": "primary" if node.name == primary else "hypervisor",
        "domain_state": "ready",
        "pvc_version": node.version,
        "cpu_count": node.vcpus,
        "arch": node.architecture,
        "health": 100 if alive else 0,
        "health_plugins": [],
        "health_details": [],
        "domains_count": len(running),
        "running_domains": sorted(vm.name for vm in running),
        "vcpu": {"total": node.vcpus, "allocated": sum(vm.vcpus for vm in running)},
        "memory": _memory(node, vms, running),
        "interfaces": {},
        "heartbeat": node.heartbeat.isoformat(),
    }


def _memory(node: Node, vms: list[Vm], running: list[Vm]) -> dict[str, int]:
    return {
        "total": node.memory_total_mib,
        "allocated": sum(vm.memory_mib for vm in running),
        "provisioned": sum(vm.memory_mib for vm in vms),
        "used": node.memory_total_mib - node.memory_free_mib,
        "free": node.memory_free_mib,
    }
