"""`pvc storage volume snapshot`: states of a volume that are kept."""

from collections.abc import Callable
from typing import Any

import click

from pvc.commands.pool import bytes_text, stats
from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import pool_names, snapshot_names, volume_names
from pvc.context import Context, pass_context
from pvc.options import format_option, limit_argument, node_option, yes_option
from pvc.output import Column, Table

PATH = ("storage", "ceph", "snapshot")

TABLE = Table(
    columns=(
        Column("snapshot", "snapshot"),
        Column("volume", "volume"),
        Column("pool", "pool"),
        Column("node", "node"),
        Column("size", lambda row: bytes_text(row, "size"), number=True),
        Column("used", lambda row: bytes_text(row, "used"), number=True),
        Column("protected", lambda row: stats(row).get("protected")),
        Column("clones", lambda row: stats(row).get("children")),
    ),
    empty="no snapshots",
    name="snapshot",
)


def volume_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """POOL VOLUME."""
    for argument in (
        click.argument("volume", shell_complete=volume_names),
        click.argument("pool", shell_complete=pool_names),
    ):
        command = argument(command)
    return command


def snapshot_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """POOL VOLUME SNAPSHOT of a snapshot that exists."""
    return volume_arguments(
        click.argument("name", metavar="SNAPSHOT", shell_complete=snapshot_names)(command)
    )


@click.group()
def snapshot() -> None:
    """Snapshots: states of a volume that are kept."""


@snapshot.command("add")
@volume_arguments
@click.argument("name", metavar="SNAPSHOT")
@node_option
@pass_context
def add(context: Context, pool: str, volume: str, name: str, node: str | None) -> None:
    """Keep the present state of VOLUME as SNAPSHOT."""
    query = {"pool": pool, "volume": volume, "snapshot": name, "node": node}
    show_message(context, context.client.post(*PATH, query=query))


@snapshot.command("rename")
@snapshot_arguments
@click.argument("new")
@node_option
@pass_context
def rename(context: Context, pool: str, volume: str, name: str, new: str, node: str | None) -> None:
    """Give SNAPSHOT of VOLUME the name NEW."""
    query = {"new_name": new, "node": node}
    show_message(context, context.client.put(*PATH, pool, volume, name, query=query))


@snapshot.command("remove")
@snapshot_arguments
@node_option
@yes_option
@pass_context
def remove(context: Context, pool: str, volume: str, name: str, node: str | None, yes: bool) -> None:
    """Delete SNAPSHOT of VOLUME; the volume stays as it is."""
    what = f'snapshot "{pool}/{volume}@{name}"'
    remove_resource(context, (*PATH, pool, volume, name), what, yes=yes, query={"node": node})


@snapshot.command("rollback")
@snapshot_arguments
@node_option
@yes_option
@pass_context
def rollback(context: Context, pool: str, volume: str, name: str, node: str | None, yes: bool) -> None:
    """Set VOLUME back to SNAPSHOT; what was written since is lost."""
    question = f'Set volume "{pool}/{volume}" back to snapshot "{name}" and lose what was written since?'
    context.confirm(question, yes=yes)
    change(context, (pool, volume, name), "rollback", node)


@snapshot.command("protect")
@snapshot_arguments
@node_option
@pass_context
def protect(context: Context, pool: str, volume: str, name: str, node: str | None) -> None:
    """Keep SNAPSHOT from being removed, so that it can be cloned."""
    change(context, (pool, volume, name), "protect", node)


@snapshot.command("unprotect")
@snapshot_arguments
@node_option
@pass_context
def unprotect(context: Context, pool: str, volume: str, name: str, node: str | None) -> None:
    """Allow SNAPSHOT to be removed; refused while it has clones."""
    change(context, (pool, volume, name), "unprotect", node)


def change(context: Context, names: tuple[str, str, str], verb: str, node: str | None) -> None:
    """One of the changes that are resources below the snapshot."""
    show_message(context, context.client.post(*PATH, *names, verb, query={"node": node}))


@snapshot.command("list")
@limit_argument
@click.option("-p", "--pool", metavar="POOL", shell_complete=pool_names, help="Only snapshots in this pool.")
@click.option(
    "-o", "--volume", metavar="VOLUME", shell_complete=volume_names, help="Only snapshots of this volume."
)
@node_option
@format_option
@pass_context
def list_snapshots(
    context: Context, limit: str | None, pool: str | None, volume: str | None, node: str | None, form: str
) -> None:
    """List snapshots whose name matches LIMIT (a regular expression)."""
    query = {"limit": limit, "pool": pool, "volume": volume, "node": node}
    list_resource(context, PATH, TABLE, form, query)
