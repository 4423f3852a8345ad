"""`pvc provisioner script`: builder scripts, and the arguments they declare."""

import click

from pvc.commands.default_scripts import install_defaults
from pvc.commands.document import DocumentKind, argument_rows, document_group, no_check, with_line_end
from pvc.completion import script_names
from pvc.context import Context, pass_context
from pvc.options import format_option
from pvc.output import Column, Row, Table, show_list

KIND = DocumentKind(
    key="script",
    label="script",
    help="Builder scripts: how a VM is made.",
    suffix=".py",
    names=script_names,
    check=no_check,
    columns=(
        Column("summary", "summary"),
        Column("API", "api_version", number=True),
        Column("arguments", lambda row: [argument.get("name") for argument in argument_rows(row)]),
    ),
)


def default_of(row: Row) -> object:
    return "" if row.get("secret") else row.get("default")


def allowed_of(row: Row) -> object:
    """The limits of an argument's value in words."""
    low, high = row.get("minimum"), row.get("maximum")
    limits = [row.get("choices") or None, row.get("pattern")]
    limits += (
        [f"{low if low is not None else ''}…{high if high is not None else ''}"]
        if (low, high) != (None, None)
        else []
    )
    return [limit for limit in limits if limit is not None]


ARGUMENTS = Table(
    columns=(
        Column("argument", "name"),
        Column("type", "type"),
        Column("required", "required"),
        Column("default", default_of),
        Column("allowed", allowed_of),
        Column("secret", "secret"),
        Column("meaning", "help"),
    ),
    empty="the script declares no arguments",
)

script = document_group(KIND)
script.add_command(install_defaults)


@script.command("show")
@click.argument("name", shell_complete=script_names)
@click.option("--arguments", is_flag=True, help="List the declared arguments instead.")
@format_option
@pass_context
def show(context: Context, name: str, arguments: bool, form: str) -> None:
    """Print script NAME as it is stored, or the arguments it declares."""
    found = context.client.get_one(*KIND.path, name)
    if arguments:
        show_list(context, ARGUMENTS, argument_rows(found), form)
    elif form.startswith("json"):
        show_list(context, ARGUMENTS, [], form, data=found)
    else:
        context.write(with_line_end(str(found.get("script") or "")))
