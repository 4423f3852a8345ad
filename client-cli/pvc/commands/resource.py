"""What the list and remove commands of all resources have in common."""

from collections.abc import Sequence

from pvc.client import Params, Reply
from pvc.context import Context
from pvc.output import Table, show_list


def list_resource(
    context: Context, path: Sequence[str], table: Table, form: str, query: Params | None = None
) -> None:
    """GET the list and print it."""
    show_list(context, table, context.client.get_list(*path, query=query), form)


def remove_resource(
    context: Context, path: Sequence[str], what: str, *, yes: bool, query: Params | None = None
) -> None:
    """DELETE the element after a confirmation."""
    context.confirm(f"Remove {what}?", yes=yes)
    show_message(context, context.client.delete(*path, query=query))


def show_message(context: Context, reply: Reply) -> None:
    """Print the server's sentence about a change that it made."""
    context.out(reply.message or "done")
