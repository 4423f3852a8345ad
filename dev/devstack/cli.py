"""Command line of dev/stack."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from devstack.stack import RESTARTED, Stack
from devstack.state import MOST_NODES
from pvccommon.errors import PvcError, WrongInput

# As a shell reports a program ended by SIGPIPE.
READER_GONE = 141


def run_program() -> int:
    """`main()` as a program: a reader of its output that has gone (`| head`) is no reason for a traceback."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 3 (status only) not everything runs."""
    options = parser().parse_args(arguments)
    stack = Stack(options.state, say=lambda line: print(line, file=sys.stderr, flush=True))
    try:
        return int(options.action(stack, options) or 0)
    except PvcError as exc:
        print(f"dev/stack: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="dev/stack", description="The whole system on one machine, for trying and testing."
    )
    result.add_argument(
        "--state",
        type=_directory,
        help="state directory (default: $PVC_STATE, else one below /var/lib/pvc-dev)",
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--state", type=_directory, default=argparse.SUPPRESS, help="state directory")
        sub.set_defaults(action=action)
        return sub

    up = command("up", _up, "start what does not run, and wait until it serves")
    up.add_argument(
        "--pool",
        choices=("directory", "ceph"),
        help="what stands behind the pool `vms` (default: directory, or what it was the last time)",
    )
    up.add_argument(
        "--nodes", type=int, help="number of hypervisor nodes (default: one, or as many as before)"
    )
    up.add_argument(
        "--only",
        type=_names,
        default=(),
        help="services, with commas between them; `libvirt`, `ceph` and `nodes` for theirs",
    )
    up.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="configuration to use instead"
    )
    command("env", _env, "print the environment of a client as shell exports")
    status = command("status", _status, "show the services")
    status.add_argument("--json", action="store_true", help="for programs")
    logs = command("logs", _logs, "show the log of a service")
    logs.add_argument("name")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    logs.add_argument("-n", "--lines", type=int, default=100)
    restart = command("restart", _restart, "stop and start services, with the code as it is now")
    restart.add_argument("names", nargs="*", default=list(RESTARTED), help="default: api nodes")
    down = command("down", _down, "power VMs off and stop everything; data are kept for the next `up`")
    down.add_argument("--purge", action="store_true", help="delete the data, too")
    return result


def overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}; values are YAML."""
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise WrongInput(
                f"read --set {assignment}", "expected SECTION.KEY=VALUE", "--set builds.lease_s=5"
            )
        *sections, name = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = yaml.safe_load(text)
    return result


def _up(stack: Stack, options: argparse.Namespace) -> None:
    nodes = options.nodes
    if nodes is not None and not 1 <= nodes <= MOST_NODES:
        raise WrongInput(f"start a stack of {nodes} nodes", f"it can have 1 to {MOST_NODES}", "use --nodes 2")
    stack.up(only=options.only, settings=overrides(options.set), pool=options.pool, nodes=nodes)


def _env(stack: Stack, options: argparse.Namespace) -> None:
    for name, value in stack.environment().items():
        print(f"export {name}={shlex.quote(value)}")


def _status(stack: Stack, options: argparse.Namespace) -> int:
    services = stack.status()
    if options.json:
        print(json.dumps([asdict(service) for service in services], indent=2))
    else:
        print(f"stack {stack.state.path}" + ("" if services else ": there is none"))
        for service in services:
            state = f"running, pid {service.pid}" if service.running else "stopped"
            print(f"  {service.name:<11} {state:<21} {service.address}")
    return 0 if services and all(service.running for service in services) else 3


def _logs(stack: Stack, options: argparse.Namespace) -> None:
    path = stack.log(options.name)
    follow = ["--follow=name"] if options.follow else []
    os.execv("/usr/bin/tail", ["tail", "-n", str(options.lines), *follow, str(path)])


def _restart(stack: Stack, options: argparse.Namespace) -> None:
    stack.restart(options.names)


def _down(stack: Stack, options: argparse.Namespace) -> None:
    stack.down(purge=options.purge)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _directory(text: str) -> Path:
    return Path(os.path.abspath(text))
