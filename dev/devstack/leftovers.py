"""What a stack could leave on the machine: processes, mounts, loop devices. Found, and taken away."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devstack import libvirt, process
from devstack.state import State
from pvccommon.run import run

GONE_TIMEOUT_S = 10


@dataclass(frozen=True)
class Leftovers:
    """`processes` are the stack's beyond doubt; the others lie below its state directory."""

    processes: tuple[int, ...]
    mounts: tuple[str, ...]
    loop_devices: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.processes or self.mounts or self.loop_devices)

    def describe(self) -> Iterator[str]:
        for pid in self.processes:
            yield f"process {pid}: {process.command_line(pid)}"
        for mount in self.mounts:
            yield f"mount {mount}"
        for device in self.loop_devices:
            yield f"loop device {device}"


def find_leftovers(state: State) -> Leftovers:
    return Leftovers(tuple(_processes(state)), tuple(_mounts(state)), tuple(_loop_devices(state)))


def remove_leftovers(state: State) -> Leftovers:
    """Take away what is found, innermost first, and return what is still there."""
    process.end_all(_processes(state))
    for mount in reversed(list(_mounts(state))):
        run(["umount", mount], timeout_s=30, ok=range(256))
    for device in _loop_devices(state):
        run(["losetup", "--detach", device], timeout_s=30, ok=range(256))
    for mount in reversed(list(_mounts(state))):
        run(["umount", mount], timeout_s=30, ok=range(256))
    return _wait_for_none(state)


def _wait_for_none(state: State) -> Leftovers:
    """What is left after a while: the mounts of an ended process, and their devices, go a little later."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (left := find_leftovers(state)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _processes(state: State) -> list[int]:
    own = set(process.marked(state.path))
    for node in range(1, state.nodes + 1):
        own.update(process.inside_root(libvirt.root(state, node) / "run", "/run"))
    return sorted(own)


def _mounts(state: State) -> Iterator[str]:
    """Mount points below the state directory, outer before inner (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo") as table:
        for line in table:
            path = line.split()[4].encode().decode("unicode_escape")
            if Path(path).is_relative_to(state.path):
                yield path


def _loop_devices(state: State) -> Iterator[str]:
    for entry in sorted(os.listdir("/sys/block")):
        backing = Path("/sys/block", entry, "loop/backing_file")
        try:
            file = backing.read_text().strip()
        except OSError:
            continue  # no loop device, or detached meanwhile
        if Path(file.removesuffix(" (deleted)")).is_relative_to(state.path):
            yield f"/dev/{entry}"
