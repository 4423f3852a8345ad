"""`pvc provisioner create` and `plan`: make a VM from a profile, or only say what would be made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from pvc.client import ApiClient
from pvc.completion import profile_names
from pvc.context import Context, pass_context
from pvc.errors import CliError, Problem, Unreachable, WrongInput, problems_in
from pvc.options import argument_option, check_script_args, detail_format_option, log_option, wait_option
from pvc.output import Column, Row, Table, print_details, print_table, show_json, size_text
from pvc.progress import watch
from pvc.tasks import check_success

CHECKS = Table(
    columns=(
        Column("check", "name"),
        Column("ok", "ok"),
        Column("finding", "message"),
        Column("hint", "hint"),
    ),
    empty="",
    title="Checks",
)
VOLUMES = Table(
    columns=(
        Column("disk", "disk_id"),
        Column("pool", "pool"),
        Column("volume", "volume"),
        Column("size", lambda row: size_text(row.get("size_bytes")), number=True),
        Column("filesystem", "filesystem"),
        Column("mount point", "mountpoint"),
        Column("source volume", "source_volume"),
    ),
    empty="",
    title="Volumes",
)
NETWORKS = Table(
    columns=(Column("VNI", "vni"), Column("MAC address", "mac"), Column("bridge", "bridge")),
    empty="",
    title="Networks",
)
ARGUMENTS = Table(
    columns=(Column("argument", "name"), Column("value", "value")), empty="", name="name", title="Arguments"
)


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `create` and `plan` are asked with."""
    for option in (
        click.option(
            "-s/-S",
            "--start/--no-start",
            "start",
            default=True,
            show_default=True,
            help="Start the VM when it is built.",
        ),
        click.option(
            "-d/-D",
            "--define/--no-define",
            "define",
            default=True,
            show_default=True,
            help="Define the VM in the cluster; without it only the volumes are kept.",
        ),
        argument_option,
        click.argument("profile", shell_complete=profile_names),
        click.argument("name"),
    ):
        command = option(command)
    return command


def build_request(
    name: str, profile: str, script_args: Sequence[str], *, define: bool, start: bool
) -> dict[str, Any]:
    """The parameters of a build. A VM that is not defined cannot be started."""
    return {
        "name": name,
        "profile": profile,
        "define_vm": define,
        "start_vm": define and start,
        "arg": check_script_args(script_args),
    }


@click.command()
@request_options
@click.option(
    "--keep-on-failure", is_flag=True, help="When the build fails, keep its volumes for inspection."
)
@wait_option
@log_option
@detail_format_option
@pass_context
def create(
    context: Context,
    name: str,
    profile: str,
    script_args: tuple[str, ...],
    define: bool,
    start: bool,
    keep_on_failure: bool,
    wait: bool,
    log: bool,
    form: str,
) -> None:
    """Build the VM NAME from PROFILE.

    The exit code is 0 only when the build succeeds. Progress goes to stderr, the result to stdout.
    """
    request = build_request(name, profile, script_args, define=define, start=start)
    request["keep_on_failure"] = keep_on_failure or None
    accepted = context.client.post("provisioner", "create", form=request).data
    show_build(context, accepted, wait=wait, log=log, form=form)


def show_build(context: Context, accepted: Any, *, wait: bool, log: bool, form: str) -> None:
    """What follows the 202 answer: the build to its end, or only its id and node."""
    task_id = accepted_id(accepted)
    if not wait:
        show_accepted(context, accepted, form)
        return
    context.note(f"build {task_id} accepted by {accepted.get('run_on') or 'a node'}")
    finish(context, context.client, task_id, log=log, form=form)


def accepted_id(accepted: object) -> str:
    """The id in the 202 answer."""
    if not isinstance(accepted, Mapping) or not accepted.get("task_id"):
        raise Unreachable("the API's answer to the request names no task")
    return str(accepted["task_id"])


def show_accepted(context: Context, accepted: Mapping[str, Any], form: str) -> None:
    if form != "pretty":
        show_json(context, accepted, form)
        return
    context.out(f"Task ID: {accepted['task_id']} assigned to node {accepted.get('run_on') or 'unknown'}")


def finish(context: Context, client: ApiClient, task_id: str, *, log: bool, form: str) -> None:
    """Follow the build, print its result; raises its error unless it succeeded."""
    task = watch(context, client, task_id, log=log)
    if form != "pretty":
        show_json(context, task, form)
    check_success(task, task_id)
    if form == "pretty":
        context.out(f"SUCCESS: {task.get('status') or 'done'}")


@click.command()
@request_options
@detail_format_option
@pass_context
def plan(
    context: Context,
    name: str,
    profile: str,
    script_args: tuple[str, ...],
    define: bool,
    start: bool,
    form: str,
) -> None:
    """Say what `create NAME PROFILE` would make, and whether it could; nothing is made."""
    request = build_request(name, profile, script_args, define=define, start=start)
    found = context.client.post("provisioner", "plan", form=request).data
    found = found if isinstance(found, dict) else {}
    if form == "pretty":
        print_plan(context, found)
    else:
        show_json(context, found, form)
    if not found.get("ok"):
        raise not_possible(name, found)


def print_plan(context: Context, found: Row) -> None:
    print_details(context, "VM", plan_details(found))
    for table, rows in (
        (VOLUMES, found.get("volumes")),
        (NETWORKS, found.get("networks")),
        (ARGUMENTS, argument_values(found.get("arguments"))),
        (CHECKS, found.get("checks")),
    ):
        if rows:
            print_table(context, table, rows)


def plan_details(found: Row) -> Iterator[tuple[str, object]]:
    """The plan's parts that are no lists: what is asked for, where, and the hardware."""
    for key in ("node", "profile", "define", "start"):
        yield key, found.get(key)
    vm, system = (found.get(part) or {} for part in ("vm", "system"))
    # The template has an id and a name as the VM has: its name says which it is, its id nothing.
    template = {"system template" if key == "name" else key: system[key] for key in system if key != "id"}
    for key, value in (*vm.items(), *template.items()):
        yield str(key).replace("_", " "), value


def argument_values(arguments: object) -> list[dict[str, object]]:
    """Arguments come as a map; secrets are masked by the server already."""
    if not isinstance(arguments, Mapping):
        return []
    return [{"name": name, "value": value} for name, value in arguments.items()]


def not_possible(name: str, found: Row) -> CliError:
    """Wrong input and failed checks are both reasons; the first hint is shown."""
    failed = [check for check in found.get("checks") or [] if not check.get("ok")]
    reasons = [
        Problem(str(check.get("name") or ""), str(check.get("message") or "failed")) for check in failed
    ]
    hints = [str(check["hint"]) for check in failed if check.get("hint")]
    return WrongInput(
        f"{name} cannot be built like this",
        hint=hints[0] if hints else "",
        problems=[*problems_in(found.get("problems")), *reasons],
    )
