"""The one place where outside programs are started.

Modelled on what every caller needs: a list argv, a fresh environment, a time limit, output streamed line
by line, and the whole process group ended on any exception.
"""

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from pvccommon.errors import EnvironmentFault

SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE_S = 2.0
TAIL_LINES = 12
REDACTED = "<redacted>"

Argument = str | os.PathLike[str]
LogLine = Callable[[str], None]


@dataclass(frozen=True)
class Completed:
    """A program that ended with an accepted exit code; stdout and stderr decoded, bad bytes replaced."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


class CommandFailed(EnvironmentFault):
    """A program ended with an exit code the caller did not accept, or by a signal."""

    def __init__(
        self, argv: Sequence[str], returncode: int, stderr: str, seconds: float, why: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        self.seconds = seconds
        tail = " | ".join(stderr.strip().splitlines()[-TAIL_LINES:])
        ended = why or f"{_ending(returncode)} after {seconds:.1f} s"
        super().__init__(f"run {shlex.join(argv)}", f"{ended}: {tail}" if tail else ended)


class CommandNotFound(CommandFailed):
    """The program is not installed (or not executable)."""


class CommandTimedOut(CommandFailed):
    """The time limit ran out; the whole process group has been ended."""


def run(
    argv: Sequence[Argument],
    *,
    timeout_s: float,
    input: str | bytes | None = None,  # noqa: A002 - the name subprocess uses
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
    ok: Collection[int] = (0,),
    log: LogLine | None = None,
    secrets: Collection[str] = (),
    pass_fds: Collection[int] = (),
) -> Completed:
    """Run a program to its end and return what it wrote.

    `env` is added to a minimal environment, nothing is inherited. `log` gets the command line (secrets
    replaced) before the start, then each line of output as it comes, stdout and stderr alike.
    Raises CommandNotFound, CommandTimedOut, or CommandFailed for an exit code not in `ok`.
    """
    command = [os.fspath(part) for part in argv]
    shown = [_redact(part, secrets) for part in command]
    say = log or (lambda line: None)
    say(f"$ {shlex.join(shown)}")
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": SAFE_PATH, "LANG": "C.UTF-8", **(env or {})},
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    except (FileNotFoundError, PermissionError) as exc:
        raise CommandNotFound(shown, 127, "", 0.0, f"cannot start: {exc.strerror}") from exc
    try:
        data = input.encode() if isinstance(input, str) else input
        stdout, stderr, in_time = _communicate(
            process, data, started + timeout_s, lambda t: say(_redact(t, secrets))
        )
    except BaseException:
        end_process_group(process)
        raise
    seconds = time.monotonic() - started
    if not in_time:
        end_process_group(process)
        raise CommandTimedOut(
            shown, -signal.SIGKILL, _redact(stderr, secrets), seconds, f"not done after {timeout_s:g} s"
        )
    if process.returncode not in ok:
        raise CommandFailed(shown, process.returncode, _redact(stderr or stdout, secrets), seconds)
    return Completed(tuple(shown), process.returncode, stdout, stderr, seconds)


def end_process_group(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """Ask the group of a process started with `start_new_session` to end, then make it; reaps the leader.

    Safe to repeat. Members that ignore SIGTERM get SIGKILL after `grace_s` seconds.
    """
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        except PermissionError:  # only zombies of another user are left
            break
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and _group_alive(process):
            time.sleep(0.02)
    process.wait(timeout=10)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            _close_quietly(stream)


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:
        pass  # unsent input of a program that is gone


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _communicate(
    process: subprocess.Popen[bytes], data: bytes | None, deadline: float, say: LogLine
) -> tuple[str, str, bool]:
    """Feed and drain the program until both outputs close and it ends; False as third value: out of time.

    A grandchild that keeps the pipes open after the program has ended is not waited for.
    """
    assert process.stdout is not None and process.stderr is not None
    collectors = {process.stdout.fileno(): _Lines(say), process.stderr.fileno(): _Lines(say)}
    out, err = collectors[process.stdout.fileno()], collectors[process.stderr.fileno()]
    poller = select.poll()
    open_fds = set(collectors)
    for fd in open_fds:
        os.set_blocking(fd, False)
        poller.register(fd, select.POLLIN)
    pending = memoryview(data or b"")
    if process.stdin is not None:
        os.set_blocking(process.stdin.fileno(), False)
        poller.register(process.stdin.fileno(), select.POLLOUT)
    in_time = True
    while open_fds or process.poll() is None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            in_time = False
            break
        ended = process.poll() is not None
        events = poller.poll(50 if ended or not open_fds else min(remaining, 0.25) * 1000)
        for fd, _event in events:
            if process.stdin is not None and not process.stdin.closed and fd == process.stdin.fileno():
                pending = _feed(process.stdin, pending, poller)
            elif fd in open_fds and not _drain(fd, collectors[fd]):
                poller.unregister(fd)
                open_fds.discard(fd)
        if ended and not events:
            break
    text = out.finish(), err.finish()
    if in_time:
        process.stdout.close()
        process.stderr.close()
        if process.stdin is not None:
            _close_quietly(process.stdin)
    return *text, in_time


def _feed(stdin: IO[bytes], pending: memoryview, poller: "select.poll") -> memoryview:
    """Write as much input as fits; closes stdin when all is written or nobody reads."""
    fd = stdin.fileno()
    try:
        pending = pending[os.write(fd, pending[:65536]) :] if pending else pending
    except BlockingIOError:
        return pending
    except BrokenPipeError:
        pending = memoryview(b"")
    if not pending:
        poller.unregister(fd)
        _close_quietly(stdin)
    return pending


def _drain(fd: int, lines: "_Lines") -> bool:
    """Read what is there; False at end of file."""
    try:
        chunk = os.read(fd, 65536)
    except BlockingIOError:
        return True
    lines.feed(chunk)
    return bool(chunk)


class _Lines:
    """Collects bytes and reports whole lines; split characters and bad bytes cannot raise."""

    def __init__(self, say: LogLine) -> None:
        self._say = say
        self._chunks: list[bytes] = []
        self._partial = b""

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._say(line.decode(errors="replace"))

    def finish(self) -> str:
        if self._partial:
            self._say(self._partial.decode(errors="replace"))
        return b"".join(self._chunks).decode(errors="replace")


def _redact(text: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, REDACTED)
    return text


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exited {returncode}"
    return f"ended by {signal.Signals(-returncode).name}"
