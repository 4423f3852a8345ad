"""The cluster as a whole."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select
from sqlalchemy.orm import defer

from pvcapid.endpoint import endpoint
from pvcapid.fields import Flag, NoParameters, documented
from pvcapid.nodes import node_elements
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvcapid.vm_element import vm_state
from pvccommon import __version__
from pvccommon.errors import WrongState
from pvccommon.models import Vm

blueprint = Blueprint("status", __name__)


class StatusElement(Schema):
    cluster_name = fields.String()
    cluster_health = fields.Dict(metadata=documented("health in percent, messages"))
    node_health = fields.Dict()
    maintenance = fields.String(metadata=documented("always false"))
    primary_node = fields.String()
    pvc_version = fields.String()
    upstream_ip = fields.String()
    nodes = fields.Dict(metadata=documented("total, and how many per state"))
    vms = fields.Dict(metadata=documented("total, and how many per state"))
    networks = fields.Integer()
    osds = fields.Dict()
    pools = fields.Integer()
    volumes = fields.Integer()
    snapshots = fields.Integer()
    resources = fields.Dict(metadata=documented("memory in MiB, cpu, disk in KiB"))
    detail = fields.Dict()


class PrimaryNode(Schema):
    primary_node = fields.String()


class Maintenance(Schema):
    state = Flag(required=True)


@blueprint.get("/status")
@endpoint(NoParameters, StatusElement)
def get_status(given: Given) -> Any:
    """Show health, counts and resources of the cluster."""
    with reading() as session:
        nodes = node_elements(session)
        vms = session.execute(select(Vm).options(defer(Vm.xml), defer(Vm.userdata))).scalars().all()
    faults = [_fault(node) for node in nodes if node["daemon_state"] == "dead"]
    return {
        "cluster_name": services().config.cluster.name,
        "cluster_health": {"health": _mean_health(nodes), "messages": faults},
        "node_health": {node["name"]: {"health": node["health"], "messages": []} for node in nodes},
        "maintenance": "false",
        "primary_node": _primary(nodes),
        "pvc_version": __version__,
        "upstream_ip": services().config.api.listen.address,
        "nodes": _counted(f"{node['daemon_state']},{node['domain_state']}" for node in nodes),
        "vms": _counted(vm_state(vm) for vm in vms),
        "networks": 0,
        "osds": {"total": 0},
        "pools": len({pool for node in nodes for pool in node["pools"]}),
        "volumes": sum(len(vm.volumes) for vm in vms),
        "snapshots": 0,
        "resources": {"memory": _memory(nodes), "cpu": _cpu(nodes), "disk": _disk(nodes)},
        "detail": {"node": [], "vm": [], "osd": [], "faults": []},
    }


@blueprint.get("/status/primary_node")
@endpoint(NoParameters, PrimaryNode)
def get_primary_node(given: Given) -> Any:
    """Show the node existing clients take for the coordinator."""
    with reading() as session:
        return {"primary_node": _primary(node_elements(session))}


@blueprint.post("/status")
@endpoint(Maintenance)
def set_maintenance(given: Given) -> str:
    """Switch maintenance on or off: not supported."""
    raise WrongState("change the maintenance state", "this is not supported yet")


def _primary(nodes: Iterable[dict[str, Any]]) -> str:
    found = [str(node["name"]) for node in nodes if node["coordinator_state"] == "primary"]
    return found[0] if found else services().config.node.name


def _fault(node: dict[str, Any]) -> dict[str, Any]:
    text = f"node {node['name']} has not reported since {node['heartbeat']}"
    return {"id": f"NODE_DEAD_{node['name']}", "health_delta": 50, "text": text}


def _mean_health(nodes: list[dict[str, Any]]) -> int:
    expected = [node["health"] for node in nodes if node["daemon_state"] != "stop"]
    return round(sum(expected) / len(expected)) if expected else 0


def _counted(words: Iterable[str]) -> dict[str, int]:
    counts = Counter(words)
    return {"total": sum(counts.values()), **counts}


def _memory(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {
        key: sum(node["memory"][key] for node in nodes)
        for key in ("total", "free", "used", "allocated", "provisioned")
    }
    return {**sums, "utilization": _percent(sums["used"], sums["total"])}


def _cpu(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(node["cpu_count"] for node in nodes)
    load = round(sum(node["load"] for node in nodes), 2)
    allocated = sum(node["vcpu"]["allocated"] for node in nodes)
    return {"total": total, "load": load, "allocated": allocated, "utilization": _percent(load, total)}


def _disk(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """In KiB. Directory pools belong to their nodes, so all of them count; a shared one counts once."""
    pools: dict[tuple[str, str], dict[str, Any]] = {}
    for node in nodes:
        for name, pool in node["pools"].items():
            key = (name, "") if pool.get("shared") else (name, node["name"])
            if key not in pools or pools[key].get("error"):  # who cannot reach it reports zeros
                pools[key] = pool
    total = sum(int(pool.get("total_bytes", 0)) for pool in pools.values()) // 1024
    free = sum(int(pool.get("free_bytes", 0)) for pool in pools.values()) // 1024
    return {"total": total, "used": total - free, "free": free, "utilization": _percent(total - free, total)}


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0
