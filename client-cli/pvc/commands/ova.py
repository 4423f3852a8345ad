"""`pvc provisioner ova`: OVA archives the way PVC 1.0 knows them, on the same resource as images."""

from collections.abc import Callable

import click

from pvc.client import Params
from pvc.commands.file_transfer import ended_by_ctrl_c, opened
from pvc.commands.image_upload import show_plan
from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import ova_names, pool_names
from pvc.context import Context, pass_context
from pvc.multipart import FileBody, size_of
from pvc.options import format_option, json_option, limit_argument, yes_option
from pvc.output import Column, Row, Table, cell, show_json
from pvc.transfer_progress import transfer_display

PATH = ("provisioner", "ova")


def volume_lines(key: str) -> Callable[[Row], object]:
    """A line for each disk of the OVA."""
    return lambda row: "\n".join(cell(volume.get(key)) for volume in row.get("volumes") or [])


TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("disk", volume_lines("disk_id")),
        Column("pool", volume_lines("pool")),
        Column("volume", volume_lines("volume_name")),
        Column("format", volume_lines("volume_format")),
        Column("size (GiB)", volume_lines("disk_size_gb"), number=True),
    ),
    empty="no OVAs",
)


@click.group()
def ova() -> None:
    """OVA archives, each with a profile and a system template of its name."""


@ova.command("upload")
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("-p", "--pool", metavar="POOL", shell_complete=pool_names, help="The pool of its disks.")
@click.option("--plan", is_flag=True, help="Only show what it describes; nothing is uploaded.")
@json_option
@pass_context
def upload(context: Context, name: str, file: str, pool: str | None, plan: bool, as_json: bool) -> None:
    """Upload the OVA archive FILE as NAME, and make a system template and a profile of that name.

    In one request: an upload that breaks off begins anew. `pvc provisioner image upload` continues.
    """
    if plan:
        show_plan(context, file, as_json=as_json)
        return
    if not pool:
        raise click.UsageError("Missing option '-p' / '--pool'.")
    client = context.client
    with opened(file) as source:
        size_bytes = size_of(source)
        query: Params = {"pool": pool, "ova_size": size_bytes}
        with (
            ended_by_ctrl_c(
                f"the upload of {name}", f"`pvc provisioner ova list ^{name}$` shows what is there"
            ),
            transfer_display(context, f"uploading {file}", size_bytes) as display,
        ):
            wait_text = "waiting for the server to finish the image"
            body = FileBody(source, advance=display.advance, sent=lambda: display.wait(wait_text))
            reply = client.upload(*PATH, name, body=body, query=query)
    if as_json:
        show_json(context, reply.data)
    else:
        show_message(context, reply)


@ova.command("remove")
@click.argument("name", shell_complete=ova_names)
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Remove the OVA NAME with its volumes, and the profile and system template of its name."""
    what = f'OVA "{name}" with its volumes, its profile and its system template'
    remove_resource(context, (*PATH, name), what, yes=yes)


@ova.command("list")
@limit_argument
@format_option
@pass_context
def list_ovas(context: Context, limit: str | None, form: str) -> None:
    """List OVAs whose name contains LIMIT (^ and $ anchor it)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit})
