"""`pvc provisioner template network`: the networks a VM is attached to."""

import click

from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import network_template_names
from pvc.context import Context, pass_context
from pvc.options import format_option, limit_argument, yes_option
from pvc.output import Column, Row, Table

PATH = ("provisioner", "template", "network")


def vnis_of(row: Row) -> list[object]:
    return [network.get("vni") for network in row.get("networks") or []]


TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("MAC template", "mac_template"),
        Column("networks (VNI)", vnis_of),
    ),
    empty="no network templates",
)


@click.group()
def network() -> None:
    """Network templates: the networks a VM is attached to."""


@network.command("add")
@click.argument("name")
@click.option(
    "-m",
    "--mac-template",
    metavar="FORMAT",
    help="Pattern of MAC addresses with {prefix}, {vmid} and {netid}; by default they are random.",
)
@pass_context
def add(context: Context, name: str, mac_template: str | None) -> None:
    """Create the network template NAME."""
    show_message(context, context.client.post(*PATH, form={"name": name, "mac_template": mac_template}))


@network.command("remove")
@click.argument("name", shell_complete=network_template_names)
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Remove the network template NAME."""
    remove_resource(context, (*PATH, name), f'network template "{name}"', yes=yes)


@network.command("list")
@limit_argument
@format_option
@pass_context
def list_templates(context: Context, limit: str | None, form: str) -> None:
    """List network templates whose name contains LIMIT (^ and $ anchor it)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit})


@network.group("vni")
def vni_group() -> None:
    """The networks of a template."""


@vni_group.command("add")
@click.argument("name", shell_complete=network_template_names)
@click.argument("vni")
@click.option("-d", "--permit-duplicate", is_flag=True, help="Allow a second interface in the same network.")
@pass_context
def add_vni(context: Context, name: str, vni: str, permit_duplicate: bool) -> None:
    """Attach VMs of the template NAME to the network VNI (a number, upstream, cluster or storage)."""
    form = {"permit_duplicate": permit_duplicate or None}
    show_message(context, context.client.post(*PATH, name, "net", vni, form=form))


@vni_group.command("remove")
@click.argument("name", shell_complete=network_template_names)
@click.argument("vni")
@yes_option
@pass_context
def remove_vni(context: Context, name: str, vni: str, yes: bool) -> None:
    """Take the network VNI out of the template NAME."""
    remove_resource(context, (*PATH, name, "net", vni), f'network {vni} of template "{name}"', yes=yes)
