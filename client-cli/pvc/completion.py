"""Names for the shell's Tab key, asked from the API while the line is typed."""

from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem

from pvc.context import Context
from pvc.errors import CliError

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_of(*path: str, key: str = "name", within: Sequence[str] = ()) -> Completer:
    """A completer offering the names of a list resource. Offers nothing when the API cannot be asked.

    `within` are the arguments before it on the line that narrow the list (a volume's pool).
    """

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        query = {argument: ctx.params.get(argument) for argument in within}
        try:
            client = context_of(ctx).client
            names = [str(row.get(key) or "") for row in client.get_list(*path, query=query)]
        except CliError:
            # Half a command line is no place for an error text.
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete


def connection_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    try:
        names = sorted(context_of(ctx).store.entries())
    except CliError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def context_of(ctx: click.Context) -> Context:
    """While completing, click runs no command, so the context is made from the options typed so far."""
    options = ctx.find_root().params
    return Context(
        connection_name=options.get("connection"),
        connection_is_explicit=bool(options.get("connection")),
        config=options.get("config"),
        quiet=True,
    )


profile_names = names_of("provisioner", "profile")
script_names = names_of("provisioner", "script")
userdata_names = names_of("provisioner", "userdata")
system_template_names = names_of("provisioner", "template", "system")
network_template_names = names_of("provisioner", "template", "network")
storage_template_names = names_of("provisioner", "template", "storage")
image_names = names_of("provisioner", "image")
ova_names = names_of("provisioner", "ova")
vm_names = names_of("vm")
node_names = names_of("node")
pool_names = names_of("storage", "ceph", "pool")
volume_names = names_of("storage", "ceph", "volume", within=("pool",))
snapshot_names = names_of("storage", "ceph", "snapshot", key="snapshot", within=("pool", "volume"))
