"""`pvc node`: the hypervisors."""

import socket
from collections.abc import Iterator

import click

from pvc.commands.resource import list_resource
from pvc.completion import node_names
from pvc.context import Context, pass_context
from pvc.options import format_option, info_format_option, limit_argument
from pvc.output import Column, Row, Table, print_details, show_json

TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("daemon", "daemon_state", state=True),
        Column("coordinator", "coordinator_state"),
        Column("domain", "domain_state", state=True),
        Column("VMs", "domains_count", number=True),
        Column("CPUs", "cpu_count", number=True),
        Column("load", "load", number=True),
        Column("memory (MiB)", lambda row: memory(row, "total"), number=True),
        Column("used", lambda row: memory(row, "used"), number=True),
        Column("free", lambda row: memory(row, "free"), number=True),
        Column("provisioned", lambda row: memory(row, "provisioned"), number=True),
    ),
    empty="no nodes",
)


def memory(row: Row, key: str) -> object:
    return (row.get("memory") or {}).get(key)


@click.group()
def node() -> None:
    """The hypervisors."""


@node.command("list")
@limit_argument
@click.option("-ds", "--daemon-state", metavar="STATE", help="Only nodes whose daemon is in this state.")
@click.option("-cs", "--coordinator-state", metavar="STATE", help="Only nodes with this part in the cluster.")
@click.option("-vs", "--domain-state", metavar="STATE", help="Only nodes whose VMs are in this state.")
@format_option
@pass_context
def list_nodes(
    context: Context,
    limit: str | None,
    daemon_state: str | None,
    coordinator_state: str | None,
    domain_state: str | None,
    form: str,
) -> None:
    """List nodes whose name matches LIMIT (a regular expression)."""
    query = {
        "limit": limit,
        "daemon_state": daemon_state,
        "coordinator_state": coordinator_state,
        "domain_state": domain_state,
    }
    list_resource(context, ("node",), TABLE, form, query)


@node.command("info")
@click.argument("name", metavar="[NODE]", required=False, shell_complete=node_names)
@info_format_option
@pass_context
def info(context: Context, name: str | None, form: str) -> None:
    """Show a node, by default the one this command runs on."""
    found = context.client.get_one("node", name or socket.gethostname().partition(".")[0])
    if form.startswith("json"):
        show_json(context, found, form)
    else:
        print_details(context, f"Node {found.get('name')}", details(found, long=form == "long"))


def details(found: Row, *, long: bool) -> Iterator[tuple[str, object]]:
    yield "daemon", found.get("daemon_state")
    yield "coordinator", found.get("coordinator_state")
    yield "domain", found.get("domain_state")
    yield "health", found.get("health")
    yield "version", found.get("pvc_version")
    yield "system", " ".join(str(found[key]) for key in ("os", "kernel", "arch") if found.get(key))
    yield "CPUs", found.get("cpu_count")
    yield "load", found.get("load")
    yield "vCPUs", found.get("vcpu")
    yield "memory (MiB)", found.get("memory")
    yield "VMs", found.get("running_domains") or found.get("domains_count")
    if long:
        yield "interfaces", found.get("interfaces")
        for key in ("heartbeat", "pools", "networks", "filesystems", "capabilities", "health_details"):
            yield key, found.get(key)
