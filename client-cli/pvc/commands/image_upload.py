"""`pvc provisioner image upload`, and its preview of an OVA."""

from collections.abc import Iterator
from typing import Any

import click

from pvc.commands.file_transfer import opened
from pvc.commands.image_options import image_options, show_made, show_warnings
from pvc.context import Context, pass_context
from pvc.errors import WrongInput
from pvc.image_request import image_request
from pvc.image_upload import upload_image
from pvc.image_wait import PATH
from pvc.options import json_option
from pvc.output import Column, Row, Table, print_details, print_table, show_json, size_text
from pvc.upload_source import UploadSource

SYSTEMS = Table(
    columns=(Column("system", "id"), Column("name", "name")), empty="", name="id", title="Machines in it"
)
DISKS = Table(
    columns=(
        Column("disk", "disk_id"),
        Column("size", lambda row: size_text(row.get("size_bytes")), number=True),
        Column("file", "file"),
        Column("format", "format"),
    ),
    empty="",
    name="disk_id",
)
NICS = Table(
    columns=(Column("network", "network"), Column("card", "model"), Column("MAC address", "mac")),
    empty="",
    name="network",
)


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False))
@image_options
@click.option("--plan", is_flag=True, help="Of an OVA: only show what it describes; nothing is uploaded.")
@click.option("--keep", is_flag=True, help="After Ctrl-C the same command can continue the upload.")
@json_option
@pass_context
def upload(
    context: Context, name: str, file: str, plan: bool, keep: bool, as_json: bool, **options: Any
) -> None:
    """Upload FILE as the image NAME, and wait until it is ready.

    When the connection breaks, the upload goes on with a new one; after a crash the same command goes on.
    Ctrl-C ends it, and nothing is left of it.
    """
    if plan:
        if options["kind"] != "ova":
            raise WrongInput("only an OVA describes a machine", hint="--plan goes with --type ova")
        show_plan(context, file, options["system"], as_json=as_json)
        return
    request = image_request(name, file, **options)
    with opened(file) as source:
        image = upload_image(context, request, UploadSource(source), keep=keep)
    show_made(context, image, as_json=as_json)


def show_plan(context: Context, file: str, system: str | None = None, *, as_json: bool) -> None:
    """Print the machine that the server reads from the OVF document of a local archive."""
    from pvc.ova_document import read_ovf_document

    with opened(file) as source:
        document = read_ovf_document(source, file)
    plan = context.client.post(*PATH, "plan", form={"data": document, "system": system}).data
    if as_json:
        show_json(context, plan)
    else:
        print_plan(context, file, plan)


def print_plan(context: Context, file: str, plan: Row) -> None:
    print_details(context, f"OVA {file}", hardware_of(plan))
    if len(plan.get("systems") or []) > 1:
        print_table(context, SYSTEMS, plan["systems"])
    for table, key in ((DISKS, "disks"), (NICS, "nics")):
        if plan.get(key):
            print_table(context, table, plan[key])
    show_warnings(context, plan)


def hardware_of(plan: Row) -> Iterator[tuple[str, object]]:
    found = plan.get("hardware")
    hardware: Row = found if isinstance(found, dict) else {}
    yield "vCPUs", hardware.get("vcpus")
    yield "memory (MiB)", hardware.get("memory_mib")
    yield "firmware", plan.get("firmware") or hardware.get("firmware")
    yield "serial console", hardware.get("serial")
    yield "VNC", hardware.get("vnc")
    buses = [f"{disk.get('disk_id')} on {disk.get('bus')}" for disk in hardware.get("disks") or []]
    yield "disk buses", buses
