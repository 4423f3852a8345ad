"""`pvc provisioner profile`: templates, userdata, script and arguments under one name."""

from collections.abc import Callable
from typing import Any

import click

from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import (
    image_names,
    network_template_names,
    ova_names,
    profile_names,
    script_names,
    storage_template_names,
    system_template_names,
    userdata_names,
)
from pvc.context import Context, pass_context
from pvc.options import argument_option, check_script_args, format_option, limit_argument, yes_option
from pvc.output import Column, Row, Table

PATH = ("provisioner", "profile")


def image_of(row: Row) -> object:
    """What the profile's disks start from. Servers without images name an OVA only; `N/A` means none."""
    named = (row.get("image"), row.get("ova"))
    return next((name for name in named if name not in (None, "", "N/A")), None)


TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("type", "type"),
        Column("system", "system_template"),
        Column("network", "network_template"),
        Column("storage", "storage_template"),
        Column("userdata", "userdata"),
        Column("script", "script"),
        Column("image", image_of),
        Column("arguments", lambda row: "\n".join(map(str, row.get("arguments") or []))),
    ),
    empty="no profiles",
)


def parts(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options naming what a profile is made of."""
    options = (
        click.option(
            "-s",
            "--system-template",
            required=required,
            metavar="NAME",
            shell_complete=system_template_names,
            help="Processors, memory, placement.",
        ),
        click.option(
            "-n",
            "--network-template",
            metavar="NAME",
            shell_complete=network_template_names,
            help="Networks.",
        ),
        click.option(
            "-t", "--storage-template", metavar="NAME", shell_complete=storage_template_names, help="Disks."
        ),
        click.option(
            "-u", "--userdata", metavar="NAME", shell_complete=userdata_names, help="cloud-init document."
        ),
        click.option(
            "-x",
            "--script",
            required=required,
            metavar="NAME",
            shell_complete=script_names,
            help="Builder script.",
        ),
        click.option(
            "-i",
            "--image",
            metavar="NAME",
            shell_complete=image_names,
            help="The image that the disks start from, or an ISO.",
        ),
        argument_option,
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group()
def profile() -> None:
    """Profiles: templates, userdata, script and arguments under one name."""


@profile.command("add")
@click.argument("name")
@click.option(
    "-p",
    "--profile-type",
    type=click.Choice(["provisioner", "ova"]),
    default="provisioner",
    show_default=True,
    help="The kind of profile: ova has the disks of an OVA instead of a storage template.",
)
@parts(required=True)
@click.option(
    "-o", "--ova", metavar="NAME", shell_complete=ova_names, help="The OVA of a profile of type ova."
)
@pass_context
def add(context: Context, name: str, script_args: tuple[str, ...], **options: Any) -> None:
    """Create the profile NAME."""
    form = {"name": name, **options, "arg": check_script_args(script_args)}
    show_message(context, context.client.post(*PATH, form=form))


@profile.command("modify")
@click.argument("name", shell_complete=profile_names)
@parts(required=False)
@click.option("-d", "--delete-script-args", is_flag=True, help="Remove all script arguments.")
@pass_context
def modify(
    context: Context, name: str, script_args: tuple[str, ...], delete_script_args: bool, **options: Any
) -> None:
    """Change the profile NAME; script arguments replace all earlier ones."""
    if delete_script_args and script_args:
        raise click.UsageError("Give either -d or -a: arguments given with -a replace all earlier ones.")
    arguments = check_script_args(script_args)
    if delete_script_args:
        # A form cannot say "an empty list", JSON can.
        given = {key: value for key, value in options.items() if value is not None}
        reply = context.client.put(*PATH, name, json={**given, "arg": []})
    else:
        reply = context.client.put(*PATH, name, form={**options, "arg": arguments})
    show_message(context, reply)


@profile.command("remove")
@click.argument("name", shell_complete=profile_names)
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Remove the profile NAME; VMs made from it stay."""
    remove_resource(context, (*PATH, name), f'profile "{name}"', yes=yes)


@profile.command("list")
@limit_argument
@format_option
@pass_context
def list_profiles(context: Context, limit: str | None, form: str) -> None:
    """List profiles whose name contains LIMIT (^ and $ anchor it)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit})
