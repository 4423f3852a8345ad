"""`pvc storage pool`: where volumes are kept."""

from collections.abc import Iterator

import click

from pvc.client import Params
from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import pool_names
from pvc.context import Context, pass_context
from pvc.errors import CliError, WrongInput
from pvc.options import detail_format_option, format_option, limit_argument, node_option, yes_option
from pvc.output import Column, Row, Table, print_details, show_json, size_text

PATH = ("storage", "ceph", "pool")
TIERS = ("default", "hdd", "ssd", "nvme")


def stats(row: Row) -> Row:
    """The part of a pool's, volume's or snapshot's element that holds its numbers."""
    found = row.get("stats")
    return found if isinstance(found, dict) else {}


def bytes_text(row: Row, key: str) -> str:
    return size_text(stats(row).get(key))


def used_text(row: Row) -> str:
    """The API's `used_percent` is a fraction."""
    fraction = stats(row).get("used_percent")
    return f"{100 * fraction:.1f} %" if isinstance(fraction, (int, float)) else ""


TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("node", "node"),
        Column("tier", "tier"),
        Column("PGs", "pgs", number=True),
        Column("volumes", "volume_count", number=True),
        Column("used", lambda row: bytes_text(row, "used_bytes"), number=True),
        Column("free", lambda row: bytes_text(row, "free_bytes"), number=True),
        Column("used %", lambda row: used_text(row).removesuffix(" %"), number=True),
    ),
    empty="no pools",
)

name_argument = click.argument("name", shell_complete=pool_names)


@click.group()
def pool() -> None:
    """Pools: where volumes are kept."""


@pool.command("add")
@click.argument("name")
@click.argument("pgs", type=click.IntRange(1))
@click.option(
    "-t",
    "--tier",
    type=click.Choice(TIERS),
    default="default",
    show_default=True,
    help="The kind of disks that it uses.",
)
@click.option(
    "--replcfg",
    metavar="CONFIG",
    default="copies=3,mincopies=2",
    show_default=True,
    help="How many copies of the data there are, and how many must be there for writing.",
)
@node_option
@pass_context
def add(context: Context, name: str, pgs: int, tier: str, replcfg: str, node: str | None) -> None:
    """Create the pool NAME with PGS placement groups."""
    query: Params = {"pool": name, "pgs": pgs, "replcfg": replcfg, "tier": tier, "node": node}
    show_message(context, context.client.post(*PATH, query=query))


@pool.command("remove")
@name_argument
@node_option
@yes_option
@pass_context
def remove(context: Context, name: str, node: str | None, yes: bool) -> None:
    """Remove the pool NAME with everything in it."""
    query = {"yes-i-really-mean-it": "yes", "node": node}
    remove_resource(context, (*PATH, name), f'pool "{name}" with all its volumes', yes=yes, query=query)


@pool.command("set-pgs")
@name_argument
@click.argument("pgs", type=click.IntRange(1))
@node_option
@yes_option
@pass_context
def set_pgs(context: Context, name: str, pgs: int, node: str | None, yes: bool) -> None:
    """Give the pool NAME another number of placement groups; its data moves."""
    context.confirm(f'Give pool "{name}" {pgs} placement groups?', yes=yes)
    show_message(context, context.client.put(*PATH, name, query={"pgs": pgs, "node": node}))


@pool.command("list")
@limit_argument
@node_option
@format_option
@pass_context
def list_pools(context: Context, limit: str | None, node: str | None, form: str) -> None:
    """List pools whose name matches LIMIT (a regular expression)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit, "node": node})


@pool.command("info")
@name_argument
@node_option
@detail_format_option
@pass_context
def info(context: Context, name: str, node: str | None, form: str) -> None:
    """Show a pool."""
    found = find_pool(context, name, node)
    if form == "pretty":
        print_details(context, f"Pool {found.get('name')}", details(found))
    else:
        show_json(context, found, form)


def find_pool(context: Context, name: str, node: str | None) -> Row:
    """The one pool of that name. There is no element resource, and nodes may have pools of the same name."""
    found = [row for row in context.client.get_list(*PATH, query={"node": node}) if row.get("name") == name]
    if not found:
        raise CliError(
            f"there is no pool {name!r}", hint="`pvc storage pool list` shows them", kind="not-found"
        )
    if len(found) > 1:
        nodes = ", ".join(str(row.get("node")) for row in found)
        raise WrongInput(f"several nodes have a pool {name!r}", why=nodes, hint="say which with --node")
    return found[0]


def details(found: Row) -> Iterator[tuple[str, object]]:
    for key, label in (("node", "node"), ("driver", "driver"), ("tier", "tier"), ("pgs", "PGs")):
        yield label, found.get(key)
    yield "volumes", found.get("volume_count")
    for key in ("used", "free", "stored"):
        value = stats(found).get(f"{key}_bytes")
        yield key, None if value is None else size_text(value)
    yield "used %", used_text(found)
    for key in ("read", "write"):
        operations = stats(found).get(f"{key}_ops")
        if operations:
            yield f"{key} so far", f"{bytes_text(found, f'{key}_bytes')} in {operations} operations"
    for key in ("objects", "object_clones", "object_copies", "objects_degraded"):
        yield key.replace("_", " "), stats(found).get(f"num_{key}") or None
