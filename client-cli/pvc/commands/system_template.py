"""`pvc provisioner template system`: processors, memory, console and placement."""

from collections.abc import Callable
from typing import Any

import click

from pvc.client import Params
from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import system_template_names
from pvc.context import Context, pass_context
from pvc.options import format_option, limit_argument, yes_option
from pvc.output import Column, Table

PATH = ("provisioner", "template", "system")
TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("vCPUs", "vcpu_count", number=True),
        Column("memory (MiB)", "vram_mb", number=True),
        Column("serial", "serial"),
        Column("VNC", "vnc"),
        Column("VNC bind", "vnc_bind"),
        Column("node limit", "node_limit"),
        Column("selector", "node_selector"),
        Column("autostart", "node_autostart"),
        Column("migration", "migration_method"),
        Column("max downtime (ms)", "migration_max_downtime", number=True),
    ),
    empty="no system templates",
)
SELECTORS = ("mem", "memprov", "vcpus", "vms", "load", "none")
METHODS = ("none", "live", "shutdown")


def settings(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of `add`; `modify` has the same, none of them required and none with a default."""
    off = False if required else None
    options = (
        click.option(
            "-u",
            "--vcpus",
            type=click.IntRange(1),
            required=required,
            metavar="N",
            help="Number of virtual CPUs.",
        ),
        click.option(
            "-m", "--vram", type=click.IntRange(1), required=required, metavar="MB", help="Memory in MiB."
        ),
        click.option("-s/-S", "--serial/--no-serial", default=off, help="A serial console with a log."),
        click.option("-n/-N", "--vnc/--no-vnc", default=off, help="A VNC display."),
        click.option("-b", "--vnc-bind", metavar="IP", help="Address VNC listens on; by default loopback."),
        click.option("--node-limit", metavar="NODE,…", help="Only these nodes may run the VM."),
        click.option(
            "--node-selector",
            type=click.Choice(SELECTORS),
            default="none" if required else None,
            show_default=required,
            help="How the node is chosen among the allowed ones.",
        ),
        click.option(
            "--node-autostart/--no-node-autostart",
            default=off,
            help="Start the VM again after its node's restart.",
        ),
        click.option("--migration-method", type=click.Choice(METHODS), help="How the VM leaves its node."),
        click.option(
            "--max-downtime",
            type=click.IntRange(0),
            default=300 if required else None,
            show_default=required,
            metavar="MS",
            help="Longest pause of a live migration in milliseconds.",
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def parameters(options: Params) -> dict[str, Any]:
    """The API's names of the options."""
    renamed = {"max_downtime": "migration_max_downtime"}
    return {renamed.get(name, name): value for name, value in options.items()}


@click.group()
def system() -> None:
    """System templates: processors, memory, console, placement."""


@system.command("add")
@click.argument("name")
@settings(required=True)
@pass_context
def add(context: Context, name: str, **options: Any) -> None:
    """Create the system template NAME."""
    show_message(context, context.client.post(*PATH, form={"name": name, **parameters(options)}))


@system.command("modify")
@click.argument("name", shell_complete=system_template_names)
@settings(required=False)
@pass_context
def modify(context: Context, name: str, **options: Any) -> None:
    """Change the system template NAME; what is not given stays as it is."""
    show_message(context, context.client.put(*PATH, name, form=parameters(options)))


@system.command("remove")
@click.argument("name", shell_complete=system_template_names)
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Remove the system template NAME."""
    remove_resource(context, (*PATH, name), f'system template "{name}"', yes=yes)


@system.command("list")
@limit_argument
@format_option
@pass_context
def list_templates(context: Context, limit: str | None, form: str) -> None:
    """List system templates whose name contains LIMIT (^ and $ anchor it)."""
    list_resource(context, PATH, TABLE, form, {"limit": limit})
