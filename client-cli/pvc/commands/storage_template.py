"""`pvc provisioner template storage`: the disks of a VM."""

from collections.abc import Callable

import click

from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import storage_template_names
from pvc.context import Context, pass_context
from pvc.errors import WrongInput
from pvc.options import format_option, limit_argument, yes_option
from pvc.output import Column, Row, Table, cell

PATH = ("provisioner", "template", "storage")


def disk_lines(key: str) -> Callable[[Row], object]:
    """A line for each disk of the template."""
    return lambda row: "\n".join(cell(disk.get(key)) for disk in row.get("disks") or [])


TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("disk", disk_lines("disk_id")),
        Column("pool", disk_lines("pool")),
        Column("source volume", disk_lines("source_volume")),
        Column("size (GiB)", disk_lines("disk_size_gb"), number=True),
        Column("filesystem", disk_lines("filesystem")),
        Column("mkfs arguments", disk_lines("filesystem_args")),
        Column("mount point", disk_lines("mountpoint")),
    ),
    empty="no storage templates",
)


def filesystem_argument(text: str) -> str:
    """The mkfs option behind KEY=VALUE: one dash before a letter, two before a word."""
    key, equals, value = text.partition("=")
    if not key:
        raise WrongInput(f"--fsarg {text!r} is not of the form KEY=VALUE")
    return ("-" if len(key) == 1 else "--") + key + equals + value


@click.group()
def storage() -> None:
    """Storage templates: the disks of a VM."""


@storage.command("add")
@click.argument("name")
@pass_context
def add(context: Context, name: str) -> None:
    """Create the storage template NAME, still without disks."""
    show_message(context, context.client.post(*PATH, form={"name": name}))


@storage.command("remove")
@click.argument("name", shell_complete=storage_template_names)
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Remove the storage template NAME and its disks."""
    remove_resource(context, (*PATH, name), f'storage template "{name}"', yes=yes)


@storage.command("list")
@limit_argument
@format_option
@pass_context
def list_templates(context: Context, limit: str | None, form: str) -> None:
    """List storage templates whose name contains LIMIT (^ and $ anchor it)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit})


@storage.group("disk")
def disk_group() -> None:
    """The disks of a template."""


@disk_group.command("add")
@click.argument("name", shell_complete=storage_template_names)
@click.argument("disk")
@click.option("-p", "--pool", required=True, metavar="POOL", help="The pool the volume is made in.")
@click.option(
    "-i", "--source-volume", metavar="VOLUME", help="Clone this volume of the pool; not with -s, -f, -m."
)
@click.option("-s", "--size", type=click.IntRange(1), metavar="GB", help="Size in GiB.")
@click.option("-f", "--filesystem", metavar="FS", help="Filesystem, such as ext4, xfs or swap.")
@click.option(
    "--fsarg",
    "filesystem_args",
    metavar="KEY=VALUE",
    multiple=True,
    help="An argument of mkfs; repeatable. L=root becomes -L=root.",
)
@click.option("-m", "--mountpoint", metavar="PATH", help="Where the guest mounts the filesystem.")
@pass_context
def add_disk(
    context: Context,
    name: str,
    disk: str,
    pool: str,
    source_volume: str | None,
    size: int | None,
    filesystem: str | None,
    filesystem_args: tuple[str, ...],
    mountpoint: str | None,
) -> None:
    """Add the disk DISK (sda, vdb, …) to the storage template NAME."""
    form = {
        "pool": pool,
        "source_volume": source_volume,
        "disk_size": size,
        "filesystem": filesystem,
        "filesystem_arg": [filesystem_argument(text) for text in filesystem_args],
        "mountpoint": mountpoint,
    }
    show_message(context, context.client.post(*PATH, name, "disk", disk, form=form))


@disk_group.command("remove")
@click.argument("name", shell_complete=storage_template_names)
@click.argument("disk")
@yes_option
@pass_context
def remove_disk(context: Context, name: str, disk: str, yes: bool) -> None:
    """Take the disk DISK out of the storage template NAME."""
    remove_resource(context, (*PATH, name, "disk", disk), f'disk {disk} of template "{name}"', yes=yes)
