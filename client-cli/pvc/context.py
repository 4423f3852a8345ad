"""The one object every command receives: global options, the API client, and ways to tell the operator."""

import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from pvc.client import ApiClient, debug_to_stderr
from pvc.connections import LOCAL, Connection, ConnectionStore, connection_from_url, store_path
from pvc.errors import CliError

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter
    from rich.console import Console

# A table that goes into a pipe keeps its lines whole.
WIDTH_OF_PIPE = 4000


@dataclass
class Context:
    """Global options and what follows from them. Commands get it with `@pass_context`."""

    connection_name: str | None = None
    connection_is_explicit: bool = False
    config: str | None = None
    debug: bool = False
    quiet: bool = False
    silent: bool = False
    unsafe: bool = False
    colour: bool | None = None
    transport: "BaseAdapter | None" = field(default=None, repr=False)

    @cached_property
    def store(self) -> ConnectionStore:
        return ConnectionStore(store_path(), self.config)

    @cached_property
    def client(self) -> ApiClient:
        connection = self.connection()
        if sys.stderr.isatty():
            self.note(f"using connection {connection.name!r} ({connection.url})")
        return self.client_of(connection)

    def close(self) -> None:
        """At the end of the command."""
        if "client" in self.__dict__:
            self.client.close()

    def client_of(self, connection: Connection) -> ApiClient:
        debug = debug_to_stderr if self.debug and not (self.quiet or self.silent) else None
        return ApiClient(connection, debug=debug, transport=self.transport)

    def connection(self) -> Connection:
        """`-c NAME`, else PVC_API_URL with PVC_API_KEY, else PVC_CONNECTION, else `local`."""
        url = os.environ.get("PVC_API_URL")
        if url and not self.connection_is_explicit:
            return connection_from_url(url, os.environ.get("PVC_API_KEY", ""))
        return self.store.get(self.connection_name or LOCAL)

    def out(self, text: str) -> None:
        """A result: one or more lines on stdout."""
        if not self.silent:
            click.echo(text)

    def write(self, text: str) -> None:
        """A result as it is, no line end added (documents, console text)."""
        if not self.silent:
            click.echo(text, nl=False)

    def note(self, text: str) -> None:
        """Something about the work, on stderr."""
        if not (self.quiet or self.silent):
            click.secho(text, err=True, dim=True, color=self.colour)

    def error(self, error: CliError) -> None:
        """The error's lines on stderr, its labels coloured on a terminal."""
        if self.quiet or self.silent:
            return
        for line in error.lines():
            label, colon, rest = line.partition(":")
            colour = {"error": "red", "hint": "cyan"}.get(label)
            text = click.style(label + colon, fg=colour, bold=True) + rest if colour else line
            click.echo(text, err=True, color=self.colour)

    def confirm(self, question: str, *, yes: bool = False) -> None:
        """Go on only after a yes. Otherwise, or when nobody can answer: CliError of kind `declined`."""
        if yes or self.unsafe:
            return
        try:
            agreed = click.confirm(question, err=True)
        except click.Abort:
            if sys.stdin.isatty():
                raise
            click.echo(err=True)
            raise CliError(
                "this needs a confirmation, and nobody is there to give it",
                hint="add -y (or the global option -u)",
                kind="declined",
            ) from None
        if not agreed:
            raise CliError("not confirmed, nothing was changed", kind="declined")

    def console(self, *, stderr: bool = False) -> "Console":
        """A rich console for tables (stdout) or progress (stderr)."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        options: dict[str, Any] = {"file": stream, "highlight": False, "markup": False, "emoji": False}
        if self.colour is not None:
            options["no_color"] = not self.colour
            options["force_terminal"] = True if self.colour else None
        if not stream.isatty() and "COLUMNS" not in os.environ:
            options["width"] = WIDTH_OF_PIPE
        return Console(quiet=self.silent or (stderr and self.quiet), **options)


pass_context = click.make_pass_decorator(Context)
