"""Processes of the stack: started detached, remembered by pid and start time, ended by what is remembered."""

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pvccommon.run import SAFE_PATH, run

PYTHON = "/usr/bin/python3"
# Every process of a stack carries its state directory under this name: so a child is told from a stranger.
MARKER = "PVC_STACK_STATE"


@dataclass(frozen=True)
class Process:
    """A pid is reused sooner or later; together with start time and boot it is not."""

    pid: int
    started_ticks: int
    boot: str

    @property
    def alive(self) -> bool:
        return self.boot == _boot() and _started_ticks(self.pid) == self.started_ticks

    @classmethod
    def current(cls) -> "Process":
        return cls(os.getpid(), _started_ticks(os.getpid()) or 0, _boot())

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load_or_none(cls, path: Path) -> "Process | None":
        """The process a file remembers; None when there is no such file or it was cut short."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def start(
    argv: Sequence[str], *, env: Mapping[str, str], log: Path, user: str | None, state: Path
) -> Process:
    """Start a process in a session of its own, its output appended to `log`; undone by `end`."""
    order = {
        "argv": list(argv),
        "env": {"PATH": SAFE_PATH, "LANG": "C.UTF-8", MARKER: str(state), **env},
        "log": str(log),
        "user": user,
    }
    launcher = str(Path(__file__).with_name("launch.py"))
    done = run([PYTHON, "-I", launcher], timeout_s=30, input=json.dumps(order))
    pid = int(done.stdout)
    return Process(pid, _started_ticks(pid) or 0, _boot())


def end(process: Process, *, first: signal.Signals, timeout_s: float) -> None:
    """Ask the process to end, then kill what is left of its session. Safe to repeat."""
    if process.alive:
        _signal(process.pid, first)
        _wait_gone([process.pid], timeout_s)
    if process.boot == _boot():
        end_all(_session_members(process))


def end_all(pids: Iterable[int], grace_s: float = 3.0) -> None:
    """SIGTERM, a little time, SIGKILL, for processes known to be ours."""
    remaining = list(pids)
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        for pid in remaining:
            _signal(pid, number)
        remaining = _wait_gone(remaining, wait_s)


def marked(state: Path) -> list[int]:
    """Processes whose environment says that they belong to the stack in `state`."""
    mark = f"{MARKER}={state}".encode()
    return [pid for pid in pids() if mark in _environment(pid)]


def tree(process: Process) -> list[int]:
    """A process with its children and theirs; empty when it is gone."""
    if not process.alive:
        return []
    parents = {pid: _stat(pid)[1:2] for pid in pids()}
    found = [process.pid]
    for parent in found:  # grows as it goes
        found += [pid for pid, above in parents.items() if above == [str(parent)]]
    return found


def send(number: signal.Signals, targets: Iterable[int]) -> None:
    """Send a signal to each; those that are gone already are fine."""
    for pid in targets:
        _signal(pid, number)


def wait_gone(targets: Iterable[int], timeout_s: float = 10.0) -> list[int]:
    """Wait for processes to end; returns those that have not."""
    return _wait_gone(targets, timeout_s)


def inside_root(directory: Path, mountpoint: str) -> list[int]:
    """Processes that see `directory` at `mountpoint`: the stack's libvirtd and all that it started."""
    try:
        wanted = directory.stat()
        host = os.stat(mountpoint)
    except FileNotFoundError:
        return []
    if (wanted.st_dev, wanted.st_ino) == (host.st_dev, host.st_ino):
        return []
    return [pid for pid in pids() if _same_directory(f"/proc/{pid}/root{mountpoint}", wanted)]


def pids() -> Iterator[int]:
    """All living processes but this one."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _started_ticks(int(entry)) is not None:
            yield int(entry)


def command_line(pid: int) -> str:
    """For people: the process's arguments, or nothing when it is gone."""
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _session_members(process: Process) -> list[int]:
    """A session id is not given to anybody else while the session has members (setsid(2))."""
    leader = _started_ticks(process.pid)
    if leader is not None and leader != process.started_ticks:
        return []
    return [pid for pid in pids() if _stat(pid)[3:4] == [str(process.pid)]]


def _wait_gone(candidates: Iterable[int], timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    remaining = list(candidates)
    while remaining := [pid for pid in remaining if _started_ticks(pid) is not None]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return remaining


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended, which is what is wanted


def _started_ticks(pid: int) -> int | None:
    """Start time of a process, proc(5) field 22; None when it is gone or a zombie."""
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; the second may hold blanks and brackets."""
    return _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()


def _environment(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/environ").split(b"\0")


def _same_directory(path: str, wanted: os.stat_result) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False  # gone, or a kernel thread
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # the process ended meanwhile


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
