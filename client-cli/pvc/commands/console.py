"""`pvc vm log`: the serial console of a VM, as kept by its node."""

import sys
import time
from collections.abc import Callable, Iterator

import click

from pvc.client import ApiClient
from pvc.completion import vm_names
from pvc.context import Context, pass_context
from pvc.output import printable

FOLLOW_LINES = 200
FOLLOW_PAUSE_S = 0.5


@click.command()
@click.argument("name", metavar="VM", shell_complete=vm_names)
@click.option(
    "-l", "--lines", type=click.IntRange(1), metavar="N", help="How many lines. Default: 1000; with -f: 10."
)
@click.option("-f", "--follow", is_flag=True, help="Go on printing what the console shows; Ctrl-C ends it.")
@pass_context
def log(context: Context, name: str, lines: int | None, follow: bool) -> None:
    """Print the serial console of a VM, through a pager on terminals."""
    client = context.client
    # The guest decides what is on its console. Escape sequences are kept away from terminals, not from pipes.
    clean = printable if sys.stdout.isatty() else str
    if follow:
        for text in follow_console(client, name, lines or 10):
            context.write(clean(text))
        return
    text = clean(console_text(client, name, lines or 1000))
    if sys.stdout.isatty() and not context.silent:
        click.echo_via_pager(text)
    else:
        context.write(text)


def console_text(client: ApiClient, name: str, lines: int) -> str:
    data = client.get("vm", name, "console", query={"lines": lines})
    return str(data.get("data") or "") if isinstance(data, dict) else ""


def follow_console(
    client: ApiClient, name: str, lines: int, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """First the last lines, then whatever is new at each look. Ends only by an error or Ctrl-C."""
    seen = console_text(client, name, FOLLOW_LINES)
    yield "".join(seen.splitlines(keepends=True)[-lines:])
    while True:
        sleep(FOLLOW_PAUSE_S)
        now = console_text(client, name, FOLLOW_LINES)
        if new := new_part(seen, now):
            yield new
        seen = now


def new_part(seen: str, now: str) -> str:
    """What `now` has beyond `seen`, both being tails of one growing text.

    Both begin at a line's start, so the part they share begins at some line of `seen`.
    """
    start = 0
    while start < len(seen):
        if now.startswith(seen[start:]):
            return now[len(seen) - start :]
        start = seen.find("\n", start) + 1
        if start == 0:
            break
    return now
