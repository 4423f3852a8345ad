"""What uploading and importing an image have in common: options, and what is shown at the end."""

from collections.abc import Callable
from typing import Any

import click

from pvc.completion import pool_names
from pvc.context import Context
from pvc.image_request import ALL_FORMATS, FORMATS
from pvc.options import node_option
from pvc.output import Row, cell, printable, show_json

Command = Callable[..., Any]

OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--type", "kind", type=click.Choice(list(FORMATS)), required=True, help="What the image is."
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(ALL_FORMATS),
        help="The format of a disk; it is never guessed. An ISO or OVA needs none.",
    ),
    click.option("-p", "--pool", metavar="POOL", shell_complete=pool_names, help="The pool to store it in."),
    node_option,
    click.option("--sha256", metavar="HEX", help="The SHA-256 that the file must have."),
    click.option("--system", metavar="ID", help="Which machine of an OVA that describes several."),
)


def image_options(command: Command) -> Command:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def show_made(context: Context, image: Row, *, as_json: bool) -> None:
    """The end of an upload or import: what was remarked, and that it is done."""
    show_warnings(context, image)
    if as_json:
        show_json(context, image)
    else:
        context.out(f'Image "{cell(image.get("name"))}" is ready.')


def show_warnings(context: Context, found: Row) -> None:
    for warning in found.get("warnings") or []:
        context.note(f"warning: {printable(str(warning))}")
