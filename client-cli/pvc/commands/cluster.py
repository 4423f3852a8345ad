"""`pvc cluster`: the cluster as a whole, and its tasks."""

from collections.abc import Iterator
from typing import Any

import click

from pvc.commands.connection import cluster_status
from pvc.commands.orphans import orphans
from pvc.commands.task import task
from pvc.context import Context, pass_context
from pvc.options import status_format_option
from pvc.output import print_details, show_json


@click.group()
def cluster() -> None:
    """The cluster as a whole, its tasks, and what nobody owns."""


for part in (task, orphans):
    cluster.add_command(part)


@cluster.command()
@status_format_option
@pass_context
def status(context: Context, form: str) -> None:
    """Health, nodes, VMs and resources."""
    found = cluster_status(context.client)
    if form == "short":
        context.out(short_text(found))
    elif form == "pretty":
        print_details(context, "Cluster", details(found))
    else:
        show_json(context, found, form)


def short_text(found: dict[str, Any]) -> str:
    health = (found.get("cluster_health") or {}).get("health", "N/A")
    name, maintenance = found.get("cluster_name") or "cluster", found.get("maintenance", "N/A")
    return f"{name}: health {health} %, maintenance {maintenance}"


def details(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    health = found.get("cluster_health") or {}
    yield "name", found.get("cluster_name")
    yield "health", f"{health['health']} %" if "health" in health else None
    for message in health.get("messages") or []:
        yield "  fault", message.get("text") if isinstance(message, dict) else message
    yield "maintenance", found.get("maintenance")
    yield "primary node", found.get("primary_node")
    yield "version", found.get("pvc_version")
    yield "nodes", counts(found.get("nodes"))
    yield "VMs", counts(found.get("vms"))
    for key in ("networks", "pools", "volumes", "snapshots"):
        yield key, found.get(key)
    yield from resources(found.get("resources") or {})


def counts(found: object) -> str:
    """`3 (run,ready 2, dead,ready 1)` from the API's map of counts."""
    if not isinstance(found, dict):
        return "N/A"
    parts = ", ".join(f"{key} {number}" for key, number in found.items() if key != "total" and number)
    return f"{found.get('total', 0)}" + (f" ({parts})" if parts else "")


def resources(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    memory, cpu, disk = (found.get(key) or {} for key in ("memory", "cpu", "disk"))
    if memory:
        yield "memory", f"{memory.get('used', 0)} of {memory.get('total', 0)} MiB used"
    if cpu:
        yield "processors", f"{cpu.get('total', 0)}, load {cpu.get('load', 0)}"
    if disk:
        yield "disk", f"{disk.get('used', 0)} of {disk.get('total', 0)} KiB used"
