"""Commands for stored texts: userdata and scripts have the same ones, made from one declaration."""

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pvc.commands.resource import list_resource, remove_resource, show_message
from pvc.completion import Completer
from pvc.context import Context, pass_context
from pvc.errors import CliError, WrongInput
from pvc.options import format_option, limit_argument, yes_option
from pvc.output import Column, Row, Table

SHORT_LINES = 4


@dataclass(frozen=True)
class DocumentKind:
    """A kind of stored text. `key` is both its path segment and the field that holds the text."""

    key: str
    label: str
    help: str
    suffix: str
    names: Completer
    check: Callable[[str], None]
    columns: tuple[Column, ...] = ()

    @property
    def path(self) -> tuple[str, str]:
        return "provisioner", self.key

    def table(self, *, long: bool) -> Table:
        def text(row: Row) -> object:
            lines = str(row.get(self.key) or "").rstrip().splitlines()
            return "\n".join(lines if long or len(lines) <= SHORT_LINES else [*lines[:SHORT_LINES], "…"])

        return Table(
            columns=(Column("name", "name"), *self.columns, Column("text", text)), empty=f"no {self.label}"
        )


def read_document(path: str) -> str:
    """The text of a file, `-` being standard input. It is sent as it is: line numbers in answers must fit."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise WrongInput(f"cannot read {path}", why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise WrongInput(f"cannot use {path}", why=f"it is no UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise WrongInput(f"cannot use {path}", why="it is empty")
    return text


def edit(context: Context, kind: DocumentKind, name: str, *, yes: bool) -> str:
    """The stored text as changed in the operator's editor, after a look at the differences."""
    old = str(context.client.get_one(*kind.path, name).get(kind.key) or "")
    new = click.edit(old, extension=kind.suffix, require_save=True)
    if new is None or new == old:
        raise CliError("nothing was changed", kind="declined")
    differences = difflib.unified_diff(old.splitlines(), new.splitlines(), "stored", "edited", lineterm="")
    context.out("\n".join(differences))
    context.confirm(f"Store this as {kind.label} {name!r}?", yes=yes)
    return new


def document_group(kind: DocumentKind) -> click.Group:
    """The group with add, modify, remove, show and list."""
    group = click.Group(kind.key, help=kind.help)
    for make in (_add, _modify, _remove, _show, _list):
        group.add_command(make(kind))
    return group


def _add(kind: DocumentKind) -> click.Command:
    @click.command("add", help=f"Store FILE (`-`: standard input) as {kind.label} NAME.")
    @click.argument("name")
    @click.argument("file", type=click.Path(allow_dash=True))
    @pass_context
    def add(context: Context, name: str, file: str) -> None:
        text = read_document(file)
        kind.check(text)
        show_message(context, context.client.post(*kind.path, form={"name": name, "data": text}))

    return add


def _modify(kind: DocumentKind) -> click.Command:
    @click.command("modify", help=f"Replace {kind.label} NAME with FILE (`-`: standard input), or edit it.")
    @click.argument("name", shell_complete=kind.names)
    @click.argument("file", required=False, type=click.Path(allow_dash=True))
    @click.option("-e", "--editor", is_flag=True, help="Change the stored text in $EDITOR.")
    @yes_option
    @pass_context
    def modify(context: Context, name: str, file: str | None, editor: bool, yes: bool) -> None:
        if (file is None) != editor:
            raise click.UsageError("Give either FILE or --editor.")
        text = edit(context, kind, name, yes=yes) if file is None else read_document(file)
        kind.check(text)
        show_message(context, context.client.put(*kind.path, name, form={"data": text}))

    return modify


def _remove(kind: DocumentKind) -> click.Command:
    @click.command("remove", help=f"Remove {kind.label} NAME.")
    @click.argument("name", shell_complete=kind.names)
    @yes_option
    @pass_context
    def remove(context: Context, name: str, yes: bool) -> None:
        remove_resource(context, (*kind.path, name), f'{kind.label} "{name}"', yes=yes)

    return remove


def _show(kind: DocumentKind) -> click.Command:
    @click.command("show", help=f"Print {kind.label} NAME as it is stored.")
    @click.argument("name", shell_complete=kind.names)
    @pass_context
    def show(context: Context, name: str) -> None:
        context.write(with_line_end(str(context.client.get_one(*kind.path, name).get(kind.key) or "")))

    return show


def _list(kind: DocumentKind) -> click.Command:
    @click.command("list", help=f"List {kind.label} whose name contains LIMIT (^ and $ anchor it).")
    @limit_argument
    @click.option("-l", "--long", is_flag=True, help=f"Whole texts instead of {SHORT_LINES} lines.")
    @format_option
    @pass_context
    def list_documents(context: Context, limit: str | None, long: bool, form: str) -> None:
        list_resource(context, kind.path, kind.table(long=long), form, {"limit": limit})

    return list_documents


def with_line_end(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def no_check(_: str) -> None:
    """The server checks everything."""


def argument_rows(script: Row) -> list[dict[str, Any]]:
    """The declared arguments of a script element."""
    return [argument for argument in script.get("arguments") or [] if isinstance(argument, dict)]
