"""`pvc provisioner image`: disks, ISOs and OVAs that VMs start from."""

from collections.abc import Iterator
from typing import Any

import click

from pvc.commands.image_options import image_options, show_made
from pvc.commands.image_upload import upload
from pvc.commands.resource import list_resource, show_message
from pvc.completion import image_names
from pvc.context import Context, pass_context
from pvc.image_request import image_request
from pvc.image_wait import PATH, wait_for_image
from pvc.options import detail_format_option, format_option, json_option, limit_argument, yes_option
from pvc.output import (
    Column,
    Row,
    Table,
    cell,
    moment_text,
    print_details,
    print_table,
    show_json,
    size_text,
)


def state_text(row: Row) -> object:
    state, percent = row.get("state"), row.get("percent")
    return f"{state} {percent:.0f} %" if state == "importing" and isinstance(percent, (int, float)) else state


def users(row: Row) -> list[str]:
    """Profiles and VMs that use the image."""
    used_by = row.get("used_by")
    found = used_by if isinstance(used_by, dict) else {}
    return [*map(str, found.get("profiles") or []), *map(str, found.get("vms") or [])]


def size_of_image(row: Row) -> str | None:
    size_bytes = row.get("size_bytes")
    return None if size_bytes is None else size_text(size_bytes)


TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("type", "kind"),
        Column("state", state_text, state=True),
        Column("pool", "pool"),
        Column("node", "node"),
        Column("format", "format"),
        Column("size", size_of_image, number=True),
        Column("disks", lambda row: len(row.get("volumes") or []), number=True),
        Column("used by", users),
    ),
    empty="no images",
)

VOLUMES = Table(
    columns=(
        Column("disk", "disk_id"),
        Column("volume", lambda row: f"{row.get('pool')}/{row.get('volume_name')}"),
        Column("format", "volume_format"),
        Column("size", lambda row: size_text(row.get("size_bytes")), number=True),
    ),
    empty="",
    name="volume_name",
)


@click.group()
def image() -> None:
    """Images that VMs start from: disks, ISOs, OVAs."""


image.add_command(upload)


@image.command("import")
@click.argument("name")
@click.argument("url")
@image_options
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until the image is ready or has failed."
)
@json_option
@pass_context
def import_image(
    context: Context, name: str, url: str, wait: bool, as_json: bool, sha256: str | None, **options: Any
) -> None:
    """Let a node fetch the image NAME from URL (http or https). Its --sha256 must be given."""
    if not sha256:
        raise click.UsageError("--sha256 must be given: nothing else says that the right file came.")
    request = image_request(name, url, sha256=sha256, **options)
    client = context.client
    reply = client.post(*PATH, name, "import", query={"url": url, **request.parameters})
    if wait:
        show_made(context, wait_for_image(context, client, name), as_json=as_json)
    elif as_json:
        show_json(context, reply.data)
    else:
        show_message(context, reply)


@image.command("list")
@limit_argument
@format_option
@pass_context
def list_images(context: Context, limit: str | None, form: str) -> None:
    """List images whose name contains LIMIT (^ and $ anchor it)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit})


@image.command("show")
@click.argument("name", shell_complete=image_names)
@detail_format_option
@pass_context
def show(context: Context, name: str, form: str) -> None:
    """Show the image NAME."""
    found = context.client.get_one(*PATH, name)
    if form != "pretty":
        show_json(context, found, form)
        return
    print_details(context, f"Image {cell(found.get('name'))}", details(found))
    if found.get("volumes"):
        print_table(context, VOLUMES, found["volumes"])


def details(found: Row) -> Iterator[tuple[str, object]]:
    yield "type", found.get("kind")
    yield "state", state_text(found)
    yield "error", "\n".join(error_lines(found.get("error")))
    yield "warnings", "\n".join(map(str, found.get("warnings") or []))
    yield "pool", found.get("pool")
    yield "node", found.get("node")
    yield "format", found.get("format")
    yield "source", found.get("source")
    yield "size", size_of_image(found)
    yield "SHA-256", found.get("sha256")
    yield "verified", found.get("verified")
    yield "made", moment_text(found.get("finished") or found.get("created"))
    yield from hardware_details(found.get("hardware"))
    yield "used by", users(found)


def error_lines(error: object) -> Iterator[str]:
    if isinstance(error, dict):
        yield ": ".join(str(error[key]) for key in ("what", "why") if error.get(key))
        if error.get("hint"):
            yield f"hint: {error['hint']}"


def hardware_details(hardware: object) -> Iterator[tuple[str, object]]:
    """The machine that an OVA describes."""
    if not isinstance(hardware, dict):
        return
    yield "vCPUs", hardware.get("vcpus")
    yield "memory (MiB)", hardware.get("memory_mib")
    yield "firmware", hardware.get("firmware")
    yield "disks", [f"{disk.get('disk_id')} on {disk.get('bus')}" for disk in hardware.get("disks") or []]
    yield "networks", [f"{nic.get('network')} ({nic.get('model')})" for nic in hardware.get("nics") or []]


@image.command("rename")
@click.argument("name", shell_complete=image_names)
@click.argument("new")
@pass_context
def rename(context: Context, name: str, new: str) -> None:
    """Give the image NAME the name NEW."""
    show_message(context, context.client.put(*PATH, name, query={"new_name": new}))


@image.command("delete")
@click.argument("name", shell_complete=image_names)
@yes_option
@pass_context
def delete(context: Context, name: str, yes: bool) -> None:
    """Delete the image NAME with its volumes; ends an import that is under way."""
    context.confirm(f'Delete image "{name}" with its volumes?', yes=yes)
    show_message(context, context.client.delete(*PATH, name))
