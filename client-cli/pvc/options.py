"""Options that many commands share, so that the same letter means the same everywhere."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from pvc.completion import node_names
from pvc.output import DETAIL_FORMATS, FORMATS, INFO_FORMATS, JSON, STATUS_FORMATS

Command = TypeVar("Command", bound=Callable[..., Any])


def _remember_json(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """`--json` is read before `--format` (eager) and leaves a mark; a group hands its mark down."""
    if wanted:
        ctx.meta["pvc.json"] = True


def _chosen_format(ctx: click.Context, _: click.Parameter, form: str) -> str:
    return JSON if ctx.meta.get("pvc.json") else form


def _format_option(formats: Sequence[str]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        choice = click.option(
            "-f",
            "--format",
            "form",
            type=click.Choice(formats),
            default="pretty",
            show_default=True,
            callback=_chosen_format,
            help="How to print the result.",
        )
        shorthand = click.option(
            "--json",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_remember_json,
            help="Short for --format json: the server's data as JSON.",
        )
        return choice(shorthand(command))

    return decorate


format_option = _format_option(FORMATS)
detail_format_option = _format_option(DETAIL_FORMATS)
info_format_option = _format_option(INFO_FORMATS)
status_format_option = _format_option(STATUS_FORMATS)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the server's data as JSON.")

node_option = click.option(
    "--node",
    metavar="NODE",
    shell_complete=node_names,
    help="The node that has the pool; needed where several nodes have one of that name.",
)

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for a confirmation.")

wait_option = click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Follow the build to its end, or only print its id and node.",
)

log_option = click.option(
    "--log/--no-log", default=True, show_default=True, help="Show the script's output while waiting."
)

argument_option = click.option(
    "-a",
    "--script-arg",
    "script_args",
    metavar="KEY=VALUE",
    multiple=True,
    help="An argument of the builder script; repeatable. Lists are written a,b,c.",
)


def limit_argument(command: Command) -> Command:
    """The optional filter of list commands."""
    return click.argument("limit", required=False)(command)


def check_script_args(values: Sequence[str]) -> list[str]:
    """Every value must look like KEY=VALUE; the names themselves are the server's to check."""
    for value in values:
        name, equals, _ = value.partition("=")
        if not equals or not name:
            # Only the part before a `=` is repeated: the rest may be a secret.
            raise click.BadParameter(f"{name!r} is not of the form KEY=VALUE", param_hint="-a/--script-arg")
    return list(values)
