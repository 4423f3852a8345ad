"""The demo: stack, builder, templates, profile, VM, and its console up to the login prompt."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from devstack.api import Api
from devstack.console import follow_until
from devstack.stack import Stack
from devstack.state import CHECKOUT, PoolKind
from pvccommon.errors import EnvironmentFault, PvcError

VM = "web1"
PROFILE = "debian12"
SCRIPT = "provisioner-scripts/builders/debootstrap.py"
# Software emulation on a slow machine needs minutes; with KVM it is seconds.
BOOT_TIMEOUT_S = 600

# What `pvc` lists under a kind of object, and the commands that make the demo's one.
TEMPLATES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "template system",
        "small",
        ("template system add small --vcpus 1 --vram 1024 --serial",),
    ),
    (
        "template network",
        "outbound",
        ("template network add outbound", "template network vni add outbound upstream"),
    ),
    (
        "template storage",
        "root4",
        (
            "template storage add root4",
            "template storage disk add root4 sda --pool vms --size 4 --filesystem ext4 --mountpoint /",
        ),
    ),
    ("script", "debootstrap", (f"script add debootstrap {SCRIPT}",)),
    (
        "profile",
        PROFILE,
        (
            f"profile add {PROFILE} --system-template small --network-template outbound "
            "--storage-template root4 --script debootstrap --script-arg release=bookworm",
        ),
    ),
)

NEXT = (
    ('eval "$(dev/stack env)"', "makes `pvc` known to your shell"),
    ("pvc vm list", "the VMs"),
    (f"pvc vm log {VM} -f", "its console; Ctrl-C ends it"),
    ("pvc provisioner script show debootstrap --arguments", "what the builder can do"),
    (f'pvc provisioner create web2 {PROFILE} -a user=me -a ssh_keys="$(cat ~/.ssh/id_ed25519.pub)"', ""),
    ("", "another one, with somebody who may log in"),
    (f"pvc vm stop {VM} -y && pvc vm remove {VM} -y", "away with it"),
    ("dev/stack status", "the services behind it"),
    ("make demo-clean", "removes everything"),
)


class Demo:
    """One run; `Stack.environment` is what every command of it gets."""

    def __init__(self, stack: Stack, pool: PoolKind | None = None) -> None:
        self.stack = stack
        self.pool = pool
        self.api = Api(stack.state)
        self.times: list[tuple[str, float]] = []

    def run(self) -> None:
        ceph = "Ceph, " if self.pool == "ceph" else ""
        self.headline(f"Starting the stack: PostgreSQL, Redis, {ceph}libvirt, API daemon, node daemon")
        started = time.monotonic()
        self.stack.up(pool=self.pool)
        self.times.append(("start the stack", time.monotonic() - started))
        self.headline("Uploading the builder, making templates and a profile")
        self.make_templates()
        self.remove_earlier()
        self.headline(f"Building {VM}")
        self.pvc("provisioner", "create", VM, PROFILE)
        self.times.extend(self.stage_times())
        self.headline(f"The serial console of {VM}")
        self.watch_console()
        self.headline(f"{VM} is up")
        self.print_times()
        self.print_next()

    def make_templates(self) -> None:
        """What is there from an earlier run stays; the builder is brought up to date."""
        for kind, name, commands in TEMPLATES:
            if name not in self.names(kind):
                for command in commands:
                    self.pvc("provisioner", *command.split())
            elif kind == "script":
                self.pvc("provisioner", "script", "modify", name, SCRIPT)
            else:
                print(f"{kind} {name} is there already")

    def remove_earlier(self) -> None:
        """End a build of the VM that an interrupted run has left, then remove the VM."""
        for build in self.api.get("/api/v1/tasks?history=true&limit=100")["builds"]:
            if build["vm"] == VM and build["build_state"] in ("queued", "running", "undoing"):
                self.pvc("cluster", "task", "cancel", build["id"])
                self.wait_ended(build["id"])
        if VM in self.lines("vm", "list", "--format", "raw"):
            print(f"{VM} of an earlier run is there: removing it first")
            self.pvc("vm", "remove", VM, "--yes")

    def wait_ended(self, task: str) -> None:
        deadline = time.monotonic() + 120
        while self.api.get(f"/api/v1/tasks/{task}")["state"] not in ("SUCCESS", "FAILURE"):
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"cancel build {task}", "it still runs after 120 s", "dev/stack logs node"
                )
            time.sleep(0.5)

    def stage_times(self) -> list[tuple[str, float]]:
        builds: list[dict[str, Any]] = self.api.get("/api/v1/tasks?history=true&limit=100")["builds"]
        build = next((build for build in builds if build["vm"] == VM), None)
        if build is None:
            raise EnvironmentFault(
                f"look up the build of {VM}", "the API knows of none", "dev/stack logs api"
            )
        return [(stage["stage"], float(stage["seconds"] or 0)) for stage in build["stages"]]

    def watch_console(self) -> None:
        started = time.monotonic()
        log = self.stack.state / "console" / f"{VM}-console.log"
        for line in follow_until(log, f"{VM} login:", BOOT_TIMEOUT_S):
            print(f"  | {line}", flush=True)
        self.times.append(("boot to the login prompt", time.monotonic() - started))

    def print_times(self) -> None:
        width = max(len(name) for name, _ in self.times)
        for name, seconds in self.times:
            print(f"  {name:<{width}}  {seconds:7.1f} s")
        print(f"  {'total':<{width}}  {sum(seconds for _, seconds in self.times):7.1f} s")

    def print_next(self) -> None:
        print(f"\nThe VM {VM} keeps running. What to try next:\n")
        for command, purpose in NEXT:
            print(f"  {command:<52} {purpose}".rstrip())

    def names(self, kind: str) -> list[str]:
        return self.lines("provisioner", *kind.split(), "list", "--format", "raw")

    def lines(self, *words: str) -> list[str]:
        """What a listing command prints."""
        done = subprocess.run(self.command(words), env=self.environment(), stdout=subprocess.PIPE, text=True)
        check(done.returncode, words)
        return done.stdout.split()

    def pvc(self, *words: str) -> None:
        """Run a command as a user would, showing it."""
        print(f"$ pvc {shlex.join(words)}", flush=True)
        check(subprocess.run(self.command(words), env=self.environment(), cwd=CHECKOUT).returncode, words)

    def command(self, words: Sequence[str]) -> list[str]:
        return [str(CHECKOUT / "dev/bin/pvc"), *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.stack.environment()}

    def headline(self, text: str) -> None:
        print(f"\n=== {text}", flush=True)


def check(code: int, words: Sequence[str]) -> None:
    if code != 0:
        raise EnvironmentFault(
            f"run pvc {shlex.join(words)}", f"it ended with code {code}, see above", "dev/stack logs node"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev/demo", description=sys.modules[__name__].__doc__)
    parser.add_argument("--clean", action="store_true", help="remove the VM, the stack and its data")
    parser.add_argument(
        "--pool",
        choices=("directory", "ceph"),
        help="where the VM's disk lies (default: directory, or what it was the last time)",
    )
    options = parser.parse_args(arguments)
    stack = Stack(say=lambda line: print(line, flush=True))
    try:
        if options.clean:
            stack.down(purge=True)
        else:
            Demo(stack, options.pool).run()
    except PvcError as exc:
        print(
            f"\ndemo: {exc.message}", *([f"hint: {exc.hint}"] if exc.hint else []), sep="\n", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(
            "\ndemo: interrupted; `make demo` starts again, `make demo-clean` removes everything",
            file=sys.stderr,
        )
        return 130
    return 0
