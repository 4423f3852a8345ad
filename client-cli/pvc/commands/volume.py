"""`pvc storage volume`: the disks of VMs, and what they are cloned from."""

from collections.abc import Callable, Iterator
from typing import Any

import click

from pvc.client import Params
from pvc.commands.pool import bytes_text, stats
from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.commands.volume_snapshot import snapshot
from pvc.commands.volume_transfer import download, upload
from pvc.completion import pool_names, snapshot_names, volume_names
from pvc.context import Context, pass_context
from pvc.options import detail_format_option, format_option, limit_argument, node_option, yes_option
from pvc.output import Column, Row, Table, print_details, show_json, size_text

PATH = ("storage", "ceph", "volume")


def volume_size(row: Row) -> str:
    """Servers without `size_bytes` send a text such as 4G."""
    numbers = stats(row)
    return size_text(numbers.get("size_bytes", numbers.get("size")))


TABLE = Table(
    columns=(
        Column("volume", "name"),
        Column("pool", "pool"),
        Column("node", "node"),
        Column("size", volume_size, number=True),
        Column("used", lambda row: bytes_text(row, "used_bytes"), number=True),
        Column("format", lambda row: stats(row).get("format")),
        Column("clone of", lambda row: stats(row).get("parent")),
    ),
    empty="no volumes",
)

force_option = click.option("-f", "--force", is_flag=True, help="Also when the pool would become too full.")


def volume_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """POOL NAME of a volume that exists."""
    for argument in (
        click.argument("name", shell_complete=volume_names),
        click.argument("pool", shell_complete=pool_names),
    ):
        command = argument(command)
    return command


@click.group()
def volume() -> None:
    """Volumes: the disks of VMs, and what they are cloned from."""


for command in (snapshot, upload, download):
    volume.add_command(command)


@volume.command("add")
@click.argument("pool", shell_complete=pool_names)
@click.argument("name")
@click.argument("size")
@force_option
@node_option
@pass_context
def add(context: Context, pool: str, name: str, size: str, force: bool, node: str | None) -> None:
    """Create the volume NAME in POOL; it reads as zeros.

    SIZE is in bytes, or has a binary unit: 512M, 20G, 1T.
    """
    query: Params = {"volume": name, "pool": pool, "size": size, "force": force, "node": node}
    show_message(context, context.client.post(*PATH, query=query))


@volume.command("info")
@volume_arguments
@node_option
@detail_format_option
@pass_context
def info(context: Context, pool: str, name: str, node: str | None, form: str) -> None:
    """Show a volume."""
    found = context.client.get_one(*PATH, pool, name, query={"node": node})
    if form == "pretty":
        print_details(context, f"Volume {pool}/{found.get('name')}", details(found))
    else:
        show_json(context, found, form)


def details(found: Row) -> Iterator[tuple[str, object]]:
    numbers = stats(found)
    yield "node", found.get("node")
    yield "size", volume_size(found)
    yield "used", size_text(numbers["used_bytes"]) if "used_bytes" in numbers else None
    yield "format", numbers.get("format")
    yield "clone of", numbers.get("parent")
    yield "features", numbers.get("features")
    yield "objects", numbers.get("objects")
    order = numbers.get("order")
    yield "object size", size_text(1 << order) if isinstance(order, int) and 0 < order < 64 else None
    yield "snapshots", numbers.get("snapshot_count")


@volume.command("remove")
@volume_arguments
@node_option
@yes_option
@pass_context
def remove(context: Context, pool: str, name: str, node: str | None, yes: bool) -> None:
    """Delete the volume NAME of POOL with its snapshots."""
    what = f'volume "{pool}/{name}" with its snapshots'
    remove_resource(context, (*PATH, pool, name), what, yes=yes, query={"node": node})


@volume.command("resize")
@volume_arguments
@click.argument("size")
@force_option
@node_option
@yes_option
@pass_context
def resize(
    context: Context, pool: str, name: str, size: str, force: bool, node: str | None, yes: bool
) -> None:
    """Let the volume NAME of POOL grow to SIZE (such as 20G)."""
    context.confirm(f'Resize volume "{pool}/{name}" to {size}?', yes=yes)
    query: Params = {"new_size": size, "force": force, "node": node}
    show_message(context, context.client.put(*PATH, pool, name, query=query))


@volume.command("rename")
@volume_arguments
@click.argument("new")
@node_option
@yes_option
@pass_context
def rename(context: Context, pool: str, name: str, new: str, node: str | None, yes: bool) -> None:
    """Give the volume NAME of POOL the name NEW."""
    context.confirm(f'Rename volume "{pool}/{name}" to "{new}"?', yes=yes)
    query = {"new_name": new, "node": node}
    show_message(context, context.client.put(*PATH, pool, name, query=query))


@volume.command("clone")
@volume_arguments
@click.argument("new")
@click.option(
    "--snapshot",
    "snapshot_name",
    metavar="SNAPSHOT",
    shell_complete=snapshot_names,
    help="Clone this protected snapshot; by default the volume as it is now.",
)
@force_option
@node_option
@pass_context
def clone(
    context: Context,
    pool: str,
    name: str,
    new: str,
    snapshot_name: str | None,
    force: bool,
    node: str | None,
) -> None:
    """Create the volume NEW as a copy-on-write clone of the volume NAME of POOL."""
    query = {"new_volume": new, "snapshot": snapshot_name, "force": force, "node": node}
    show_message(context, context.client.post(*PATH, pool, name, "clone", query=query))


@volume.command("flatten")
@volume_arguments
@node_option
@pass_context
def flatten(context: Context, pool: str, name: str, node: str | None) -> None:
    """Copy what the clone NAME of POOL shares with its parent, so that it stands alone."""
    context.note(f"copying what {pool}/{name} shares with its parent")
    show_message(context, context.client.post(*PATH, pool, name, "flatten", query={"node": node}))


@volume.command("list")
@limit_argument
@click.option("-p", "--pool", metavar="POOL", shell_complete=pool_names, help="Only volumes of this pool.")
@node_option
@format_option
@pass_context
def list_volumes(context: Context, limit: str | None, pool: str | None, node: str | None, form: str) -> None:
    """List volumes whose name matches LIMIT (a regular expression)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit, "pool": pool, "node": node})
