"""`pvc vm`: virtual machines that exist."""

from collections.abc import Iterator
from pathlib import Path

import click

from pvc.commands.console import log
from pvc.commands.resource import list_resource, show_message
from pvc.completion import node_names, vm_names
from pvc.context import Context, pass_context
from pvc.errors import WrongInput
from pvc.options import format_option, info_format_option, limit_argument, yes_option
from pvc.output import Column, Row, Table, print_details, show_json

TABLE = Table(
    columns=(
        Column("name", "name"),
        Column("state", "state", state=True),
        Column("node", "node"),
        Column("migrated", "migrated"),
        Column("vCPUs", "vcpu", number=True),
        Column("memory (MiB)", "memory", number=True),
        Column("networks", lambda row: [network.get("vni") for network in row.get("networks") or []]),
        Column("tags", lambda row: [tag.get("name") for tag in row.get("tags") or []]),
        Column("profile", "profile"),
    ),
    empty="no VMs",
)

vm_argument = click.argument("name", metavar="VM", shell_complete=vm_names)


@click.group()
def vm() -> None:
    """Virtual machines."""


vm.add_command(log)


@vm.command("list")
@limit_argument
@click.option("-t", "--target", metavar="NODE", shell_complete=node_names, help="Only VMs on this node.")
@click.option("-s", "--state", metavar="STATE", help="Only VMs in this state.")
@click.option("-g", "--tag", metavar="TAG", help="Only VMs with this tag.")
@click.option("-n", "--negate", is_flag=True, help="Turn the meaning of the filters round.")
@format_option
@pass_context
def list_vms(
    context: Context,
    limit: str | None,
    target: str | None,
    state: str | None,
    tag: str | None,
    negate: bool,
    form: str,
) -> None:
    """List VMs whose name matches LIMIT (a regular expression, or a UUID)."""
    query = {"limit": limit, "node": target, "state": state, "tag": tag, "negate": negate}
    list_resource(context, ("vm",), TABLE, form, query)


@vm.command("info")
@vm_argument
@info_format_option
@pass_context
def info(context: Context, name: str, form: str) -> None:
    """Show a VM."""
    found = context.client.get_one("vm", name)
    if form.startswith("json"):
        show_json(context, found, form)
    else:
        print_details(context, f"VM {found.get('name')}", details(found, long=form == "long"))


def details(found: Row, *, long: bool) -> Iterator[tuple[str, object]]:
    for key in ("uuid", "description", "profile", "state", "failed_reason", "node", "last_node"):
        yield key.replace("_", " "), found.get(key)
    yield "migrated", found.get("migrated")
    yield "vCPUs", found.get("vcpu")
    yield "memory (MiB)", found.get("memory")
    yield "tags", [tag.get("name") for tag in found.get("tags") or []]
    for network in found.get("networks") or []:
        yield "network", f"{network.get('vni')} ({network.get('mac')}, {network.get('model')})"
    for disk in found.get("disks") or []:
        yield "disk", f"{disk.get('dev')} {disk.get('name')} ({disk.get('bus')})"
    vnc = found.get("vnc") or {}
    yield "VNC", f"{vnc['listen']}:{vnc.get('port')}" if vnc.get("listen") not in (None, "None", "") else None
    if long:
        for key in ("vcpu_topology", "type", "arch", "machine", "emulator", "features", "controllers"):
            yield key.replace("_", " "), found.get(key)
        for key in (
            "node_limit",
            "node_selector",
            "node_autostart",
            "migration_method",
            "migration_max_downtime",
        ):
            yield key.replace("_", " "), found.get(key)
        for snapshot in found.get("snapshots") or []:
            yield "snapshot", snapshot.get("name")


def change_state(context: Context, name: str, state: str, *, force: bool = False, wait: bool = False) -> None:
    """Ask for another state; with `wait` the server answers when it is reached."""
    form = {"state": state, "force": force or None, "wait": wait or None}
    show_message(context, context.client.post("vm", name, "state", form=form))


force_option = click.option(
    "--force", is_flag=True, help="Change the state even if the VM's present one forbids it."
)
wait_flag = click.option("-w", "--wait", is_flag=True, help="Return when the guest has shut down.")


@vm.command("start")
@vm_argument
@force_option
@pass_context
def start(context: Context, name: str, force: bool) -> None:
    """Start a VM."""
    change_state(context, name, "start", force=force)


@vm.command("shutdown")
@vm_argument
@yes_option
@wait_flag
@pass_context
def shutdown(context: Context, name: str, yes: bool, wait: bool) -> None:
    """Ask the guest to shut down."""
    context.confirm(f'Shut down VM "{name}"?', yes=yes)
    change_state(context, name, "shutdown", wait=wait)


@vm.command("stop")
@vm_argument
@force_option
@yes_option
@pass_context
def stop(context: Context, name: str, force: bool, yes: bool) -> None:
    """Switch a VM off at once; its guest may lose data."""
    context.confirm(f'Forcibly stop VM "{name}"?', yes=yes)
    change_state(context, name, "stop", force=force)


@vm.command("restart")
@vm_argument
@yes_option
@wait_flag
@pass_context
def restart(context: Context, name: str, yes: bool, wait: bool) -> None:
    """Shut a VM down and start it again."""
    context.confirm(f'Restart VM "{name}"?', yes=yes)
    change_state(context, name, "restart", wait=wait)


@vm.command("undefine")
@vm_argument
@yes_option
@pass_context
def undefine(context: Context, name: str, yes: bool) -> None:
    """Stop a VM and forget its definition; its volumes stay.

    They keep the name from being built anew until `pvc storage volume remove` has deleted them.
    """
    context.confirm(f'Undefine VM "{name}"?', yes=yes)
    show_message(context, context.client.delete("vm", name, query={"delete_disks": False}))


@vm.command("remove")
@vm_argument
@yes_option
@pass_context
def remove(context: Context, name: str, yes: bool) -> None:
    """Stop a VM, forget its definition and delete its volumes."""
    context.confirm(f'Undefine VM "{name}" and delete its volumes?', yes=yes)
    show_message(context, context.client.delete("vm", name, query={"delete_disks": True}))


@vm.command("dump")
@vm_argument
@click.option("-f", "--file", metavar="PATH", help="Write to this file instead of stdout.")
@pass_context
def dump(context: Context, name: str, file: str | None) -> None:
    """Print the libvirt XML of a VM."""
    xml = str(context.client.get_one("vm", name).get("xml") or "")
    if file is None:
        context.out(xml)
        return
    try:
        Path(file).write_text(xml + "\n", encoding="utf-8")
    except OSError as error:
        raise WrongInput(f"cannot write {file}", why=error.strerror or str(error)) from error
