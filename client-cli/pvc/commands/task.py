"""`pvc cluster task`: builds, by id. The group also takes an id where a command's name would stand."""

from collections.abc import Iterator
from typing import Any

import click

from pvc.client import ApiClient
from pvc.commands.create import finish, show_build
from pvc.commands.resource import show_message
from pvc.completion import context_of
from pvc.context import Context, pass_context
from pvc.errors import CliError, WrongInput
from pvc.options import (
    argument_option,
    check_script_args,
    detail_format_option,
    format_option,
    log_option,
    wait_option,
    yes_option,
)
from pvc.output import (
    RAW,
    Column,
    Row,
    Table,
    moment_text,
    print_details,
    printable,
    show_json,
    show_list,
    time_text,
)
from pvc.progress import log_text, percent_of
from pvc.tasks import LogLine, Task, check_success, get_task, is_finished, last_lines, log_lines, poll_events

TABLE = Table(
    columns=(
        Column("id", "id"),
        Column("state", lambda row: row.get("build_state") or row.get("state"), state=True),
        Column("VM", "vm"),
        Column("profile", "profile"),
        Column("node", "node"),
        Column("stage", "stage"),
        Column("%", lambda row: percent_text(row), number=True),
        Column("created", lambda row: moment_text(row.get("created"))),
        Column("status", lambda row: str(row.get("status") or "").partition("\n")[0]),
    ),
    empty="no builds",
    name="id",
)


class TaskGroup(click.Group):
    """`task cancel ID`, `task log ID`, … are commands; `task ID` is short for following that id."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "ID", follow_task, args
        return super().resolve_command(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] [ID | COMMAND [ARGS]…]")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        return [*super().shell_complete(ctx, incomplete), *task_ids(ctx, None, incomplete)]


def task_ids(ctx: click.Context, _: click.Parameter | None, incomplete: str) -> list[Any]:
    """Ids for the Tab key."""
    from click.shell_completion import CompletionItem

    try:
        found = builds(context_of(ctx).client, limit=50)
    except CliError:
        return []
    return [
        CompletionItem(str(build.get("id")), help=f"{build.get('vm')} {build.get('build_state')}")
        for build in found
        if str(build.get("id")).startswith(incomplete)
    ]


@click.group(cls=TaskGroup, invoke_without_command=True)
@click.option("--active", is_flag=True, help="Only builds that have not ended.")
@click.option(
    "-n", "--number", type=click.IntRange(1), default=20, show_default=True, help="How many to list."
)
@wait_option
@format_option
@click.pass_context
@pass_context
def task(context: Context, ctx: click.Context, active: bool, number: int, wait: bool, form: str) -> None:
    """List builds, newest first; with an ID, follow that build to its end."""
    ctx.meta["pvc.task"] = (wait, form)
    if ctx.invoked_subcommand is not None:
        return
    found = [build for build in builds(context.client, limit=number) if not (active and is_finished(build))]
    show_list(context, TABLE, found, form)


@click.command("ID")
@click.argument("task_id", metavar="ID")
@click.option("--wait/--no-wait", default=None, help="Follow the build to its end, or only show where it is.")
@log_option
@format_option
@click.pass_context
@pass_context
def follow_task(
    context: Context, ctx: click.Context, task_id: str, wait: bool | None, log: bool, form: str
) -> None:
    """Follow the build ID to its end; the exit code is that of `create`."""
    group_wait, group_form = ctx.meta.get("pvc.task", (True, "pretty"))
    form = group_form if form == "pretty" else form
    if form == RAW:
        raise WrongInput("the format raw is for lists", hint="use pretty, json or json-pretty")
    if group_wait if wait is None else wait:
        finish(context, context.client, task_id, log=log, form=form)
    else:
        show_task(context, get_task(context.client, task_id), form)


def show_task(context: Context, found: Task, form: str) -> None:
    """One look at a build; raises its error when it failed."""
    if form == "pretty":
        print_details(context, "Build", details_of(found))
    else:
        show_json(context, found, form)
    if is_finished(found):
        check_success(found, str(found.get("id") or "?"))


def details_of(found: Task) -> Iterator[tuple[str, object]]:
    yield "id", found.get("id")
    yield "state", found.get("build_state") or found.get("state")
    for key in ("status", "vm", "profile", "node", "stage"):
        yield key, found.get(key)
    yield "progress", percent_text(found) + " %" if percent_text(found) else ""
    for key in ("created", "started", "finished"):
        yield key, moment_text(found[key]) if found.get(key) else None
    yield "retry of", found.get("retry_of")
    yield "kept volumes", found.get("kept_volumes")
    for stage in found.get("stages") or []:
        yield f"  {stage.get('stage')}", time_text(stage.get("seconds"))


@task.command("cancel")
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@pass_context
def cancel(context: Context, task_id: str) -> None:
    """End the build ID; everything it made is undone."""
    show_message(context, context.client.post("tasks", task_id, "cancel"))


@task.command("retry")
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@argument_option
@wait_option
@log_option
@detail_format_option
@pass_context
def retry(
    context: Context, task_id: str, script_args: tuple[str, ...], wait: bool, log: bool, form: str
) -> None:
    """Run the plan of the failed or cancelled build ID again, and follow the new build.

    Arguments are needed only for secrets that are not kept any more.
    """
    given = {"arg": check_script_args(script_args)}
    accepted = context.client.post("tasks", task_id, "retry", form=given).data
    show_build(context, accepted, wait=wait, log=log, form=form)


@task.command("discard")
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@yes_option
@pass_context
def discard(context: Context, task_id: str, yes: bool) -> None:
    """Delete the volumes kept of the failed build ID."""
    client = context.client
    kept = [] if yes or context.unsafe else get_task(client, task_id).get("kept_volumes")
    volumes = ", ".join(map(printable, kept or [])) or "what is kept"
    context.confirm(f"Delete {volumes} of build {task_id}?", yes=yes)
    show_message(context, client.post("tasks", task_id, "discard"))


@task.command("log")
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@click.option("-l", "--lines", type=click.IntRange(1), metavar="N", help="Only the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the build ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON, one a line.")
@pass_context
def log(context: Context, task_id: str, lines: int | None, follow: bool, as_json: bool) -> None:
    """Print the log of the build ID."""
    client = context.client
    after = 0
    for line in last_lines(client, task_id, lines) if lines else log_lines(client, task_id, after):
        print_line(context, line, as_json=as_json)
        after = line.seq
    if after == 0:
        explain_empty(client, task_id)
    if follow:
        for happening in poll_events(client, task_id, after):
            if isinstance(happening, LogLine):
                print_line(context, happening, as_json=as_json)


def explain_empty(client: ApiClient, task_id: str) -> None:
    """No log line: an unknown id is an error, a young build is not."""
    found = get_task(client, task_id)
    if is_finished(found):
        check_success(found, task_id)


def print_line(context: Context, line: LogLine, *, as_json: bool) -> None:
    if as_json:
        show_json(context, vars(line))
    else:
        context.out(log_text(line))


def builds(client: ApiClient, *, limit: int) -> list[Row]:
    """Builds, newest first. Servers without a history answer with queues by worker; those are flattened."""
    answer = client.get("tasks", query={"history": True, "limit": limit})
    if not isinstance(answer, dict):
        return []
    found = answer.get("builds")
    if isinstance(found, list):
        return found[:limit]
    return [row for key, state in QUEUES for row in queue_rows(answer.get(key), state)][:limit]


QUEUES = (("active", "RUNNING"), ("reserved", "PENDING"), ("scheduled", "PENDING"))


def queue_rows(workers: object, state: str) -> Iterator[Row]:
    if not isinstance(workers, dict):
        return
    for worker, entries in workers.items():
        for entry in entries or []:
            found = entry.get("kwargs")
            kwargs: dict[str, Any] = found if isinstance(found, dict) else {}
            yield {
                "id": entry.get("id"),
                "state": state,
                "vm": kwargs.get("vm_name"),
                "profile": kwargs.get("profile_name"),
                "node": kwargs.get("run_on") or worker,
                "status": entry.get("name"),
            }


def percent_text(row: Row) -> str:
    percent = percent_of(row)
    return "" if percent is None else f"{percent:.0f}"
