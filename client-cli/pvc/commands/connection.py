"""`pvc connection`: the clusters this client knows."""

from typing import Any

import click

from pvc.client import ApiClient
from pvc.completion import connection_names
from pvc.connections import DEFAULT_PORT, LOCAL, Connection
from pvc.context import Context, pass_context
from pvc.errors import CliError, WrongInput
from pvc.options import detail_format_option, format_option, yes_option
from pvc.output import Column, Table, show_list

COLUMNS = (
    Column("name", "name"),
    Column("description", "description"),
    Column("host", "host"),
    Column("port", "port", number=True),
    Column("scheme", "scheme"),
    Column("api key", "api_key"),
)
CONNECTIONS = Table(columns=COLUMNS, empty="no connections")
DETAILS = Table(
    columns=(
        Column("name", "name"),
        Column("address", "address"),
        Column("cluster", "cluster_name"),
        Column("health", "health", number=True),
        Column("primary node", "primary_node"),
        Column("nodes", "nodes", number=True),
        Column("VMs", "vms", number=True),
        Column("problem", "problem"),
    ),
    empty="no connections",
)


@click.group()
def connection() -> None:
    """Manage the clusters this client knows.

    They are kept in pvc.json under PVC_CLIENT_DIR, by default ~/.config/pvc.
    """


@connection.command("add")
@click.argument("name")
@click.option("-d", "--description", default="", metavar="TEXT", help="What the cluster is for.")
@click.option("-a", "--address", required=True, metavar="HOST", help="Host name or address of the API.")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port of the API.",
)
@click.option(
    "-k", "--api-key", default="", metavar="KEY", help="API token; `-` asks for it without showing it."
)
@click.option("-s/-S", "--ssl/--no-ssl", default=False, show_default=True, help="Whether the API speaks TLS.")
@pass_context
def add(
    context: Context, name: str, description: str, address: str, port: int, api_key: str, ssl: bool
) -> None:
    """Store the connection NAME, or replace it."""
    if name == LOCAL:
        raise WrongInput(
            "`local` is the cluster of this machine and cannot be stored", hint="take another name"
        )
    if api_key == "-":
        api_key = click.prompt("API key", hide_input=True, err=True)
    scheme = "https" if ssl else "http"
    context.store.add(Connection(name, description, address, port, scheme, api_key.strip()))
    context.out(f'Stored connection "{name}" in {context.store.path}')


@connection.command("remove")
@click.argument("name", shell_complete=connection_names)
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Forget the connection NAME."""
    context.confirm(f'Remove connection "{name}"?', yes=yes)
    context.store.remove(name)
    context.out(f'Removed connection "{name}"')


@connection.command("list")
@click.option("-k", "--show-keys", is_flag=True, help="Show API keys instead of stars.")
@format_option
@pass_context
def list_connections(context: Context, show_keys: bool, form: str) -> None:
    """List the stored connections and `local`."""
    rows = [connection_row(name, found, show_keys=show_keys) for name, found in context.store.all()]
    show_list(context, CONNECTIONS, rows, form)


@connection.command("detail")
@detail_format_option
@pass_context
def detail(context: Context, form: str) -> None:
    """Ask every connection's cluster how it is."""
    rows = [detail_row(context, name, found) for name, found in context.store.all()]
    show_list(context, DETAILS, rows, form)


def connection_row(name: str, found: Connection | CliError, *, show_keys: bool) -> dict[str, Any]:
    if isinstance(found, CliError):
        return {"name": name, "description": f"unusable: {found}"}
    key = found.api_key if show_keys else "*" * 8 if found.api_key else ""
    return {
        "name": name,
        "description": found.description,
        "host": found.host,
        "port": found.port,
        "scheme": found.scheme,
        "api_key": key,
    }


def detail_row(context: Context, name: str, found: Connection | CliError) -> dict[str, Any]:
    if isinstance(found, CliError):
        return {"name": name, "problem": str(found)}
    row: dict[str, Any] = {"name": name, "address": found.url}
    try:
        status = cluster_status(context.client_of(found))
    except CliError as error:
        return {**row, "problem": str(error)}
    health = status.get("cluster_health") or {}
    return {
        **row,
        "cluster_name": status.get("cluster_name"),
        "health": health.get("health"),
        "primary_node": status.get("primary_node"),
        "nodes": (status.get("nodes") or {}).get("total"),
        "vms": (status.get("vms") or {}).get("total"),
    }


def cluster_status(client: ApiClient) -> dict[str, Any]:
    data = client.get("status")
    return data if isinstance(data, dict) else {}
