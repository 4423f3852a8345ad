"""`pvc cluster orphans`: what nodes hold that no VM, no build and nobody else knows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from pvc.client import ApiClient
from pvc.context import Context, pass_context
from pvc.errors import CliError, Problem, Unreachable
from pvc.options import format_option, yes_option
from pvc.output import (
    PRETTY,
    RAW,
    Column,
    Row,
    Table,
    print_table,
    printable,
    show_json,
    show_list,
    size_text,
)

PATH = ("orphans",)
# A server takes a limited number of parameters in one request.
BATCH = 500

TABLE = Table(
    columns=(
        Column("kind", "kind"),
        Column("node", "node"),
        Column("name", "name"),
        Column("size", lambda row: size_text(row.get("size_bytes")), number=True),
        Column("used", lambda row: size_text(row.get("used_bytes")), number=True),
        Column("why", "why"),
    ),
    empty="no orphans: all that the nodes hold belongs to something",
    name="id",
)


@click.command()
@click.option("--remove", is_flag=True, help="Remove them, after a look at the list.")
@yes_option
@format_option
@pass_context
def orphans(context: Context, remove: bool, yes: bool, form: str) -> None:
    """List volumes, domains, snapshots and mappings that belong to nothing, or remove them.

    With --remove the exit code is 0 only when all of them could be removed.
    """
    client = context.client
    found = find_orphans(client)
    if not remove or not found:
        show_list(context, TABLE, found, form)
        return
    print_table(context, TABLE, found, stderr=form != PRETTY)
    context.confirm(f"Remove {counted(found)}? What they hold is lost.", yes=yes)
    answers = list(remove_orphans(client, found))
    show_removed(context, answers, form)
    check_removed(found, answers)


def find_orphans(client: ApiClient) -> list[Row]:
    """Not `get_list`: a server that does not know the resource would seem to have no orphans."""
    found = client.get(*PATH)
    if not isinstance(found, list) or not all(isinstance(row, dict) and row.get("id") for row in found):
        raise Unreachable("the API's answer about orphans is not understood")
    return found


def counted(found: Sequence[Row]) -> str:
    return "this orphan" if len(found) == 1 else f"these {len(found)} orphans"


def remove_orphans(client: ApiClient, found: Sequence[Row]) -> Iterator[Mapping[str, Any]]:
    """The server's answers. The ids travel in the body: together they may be longer than a URL can be."""
    ids = [str(row["id"]) for row in found]
    for start in range(0, len(ids), BATCH):
        answer = client.request("DELETE", PATH, form={"orphan": ids[start : start + BATCH]}).data
        yield answer if isinstance(answer, dict) else {}


def show_removed(context: Context, answers: Sequence[Mapping[str, Any]], form: str) -> None:
    if form == PRETTY:
        for answer in answers:
            context.out(str(answer.get("message") or "done"))
        return
    removed, failed = (entries_of(answers, key) for key in ("removed", "failed"))
    if form == RAW:
        for orphan in removed:
            context.out(str(orphan))
    else:
        show_json(context, {"removed": removed, "failed": failed}, form)


def entries_of(answers: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    return [entry for answer in answers for entry in answer.get(key) or []]


def check_removed(found: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> None:
    """Raise CliError unless nothing failed."""
    names = {row["id"]: printable(f"{row.get('kind')} {row.get('name')}") for row in found}
    failed = [entry for entry in entries_of(answers, "failed") if isinstance(entry, dict)]
    if not failed:
        return
    raise CliError(
        f"{len(failed)} of {len(found)} orphans could not be removed",
        problems=[
            Problem(names.get(entry.get("id"), str(entry.get("id"))), str(entry.get("message") or "failed"))
            for entry in failed
        ],
    )
