"""What a sandbox may use up: resource limits of its processes, and control groups where the host has them."""

import contextlib
import os
import resource
from typing import NamedTuple

OPEN_FILES = (1024, 65536)
OOM_SCORE = 500
GROUP_PREFIX = "pvc-sandbox."
CGROUP_ROOT = "/sys/fs/cgroup"
MIB = 1024 * 1024


class Hierarchy(NamedTuple):
    """Where a controller's groups are made, and whether by version 2 of control groups."""

    directory: str
    unified: bool


def limit_this_process() -> None:
    """Bind the calling process and all that come from it; only real root can lower the OOM score again."""
    # 1, not 0: the value at which the kernel does not even start the host's core dump handler (core(5)).
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES[0], soft), min(OPEN_FILES[1], hard)))
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(f"{OOM_SCORE}\n")


class ControlGroups:
    """Memory and process limits of one sandbox. Best effort: `enforced` says which are real, and how."""

    def __init__(self, *, memory_mib: int, processes: int) -> None:
        self._directories: list[str] = []
        self.enforced: dict[str, str] = {}
        bytes_ = str(memory_mib * MIB)
        self._apply("memory", [("memory.max", "memory.limit_in_bytes", bytes_), ("memory.swap.max", "", "0")])
        self._apply("pids", [("pids.max", "pids.max", str(processes))])

    def add(self, pid: int) -> None:
        """Move a process into the groups; call it before the process starts others."""
        for directory in self._directories:
            _write(os.path.join(directory, "cgroup.procs"), str(pid))

    def close(self) -> None:
        """Remove the groups, once their processes have ended; those of killed keepers go as well."""
        for directory in self._directories:
            with contextlib.suppress(OSError):
                os.rmdir(directory)
            _sweep(os.path.dirname(directory))

    def _apply(self, controller: str, settings: list[tuple[str, str, str]]) -> None:
        hierarchy = find_hierarchy(controller)
        if hierarchy is None:
            self.enforced[controller] = "none"
            return
        directory = os.path.join(hierarchy.directory, f"{GROUP_PREFIX}{os.getpid()}")
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            for new_name, old_name, value in settings:
                name = new_name if hierarchy.unified else old_name
                if name and os.path.exists(os.path.join(directory, name)):
                    _write(os.path.join(directory, name), value)
        except OSError as exc:
            self.enforced[controller] = f"none ({exc.strerror})"
            return
        self.enforced[controller] = "cgroup2" if hierarchy.unified else "cgroup1"
        if directory not in self._directories:
            self._directories.append(directory)


def find_hierarchy(controller: str, root: str = CGROUP_ROOT) -> Hierarchy | None:
    """Where the host limits by this controller: version 2 if it does, else version 1, else nowhere."""
    for directory in (root, os.path.join(root, "unified")):
        if controller in _read(os.path.join(directory, "cgroup.subtree_control")).split():
            return Hierarchy(directory, unified=True)
    old = os.path.join(root, controller)
    return Hierarchy(old, unified=False) if os.path.exists(os.path.join(old, "cgroup.procs")) else None


def _sweep(parent: str) -> None:
    """Remove groups whose keeper no longer exists (it was killed and could not do it itself)."""
    for name in os.listdir(parent):
        pid = name.removeprefix(GROUP_PREFIX)
        # A process that has ended but was not waited for has no command line.
        if name.startswith(GROUP_PREFIX) and pid.isdigit() and not _read(f"/proc/{pid}/cmdline"):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(parent, name))


def _read(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as stream:
        stream.write(text)
