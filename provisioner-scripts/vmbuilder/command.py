"""Running outside programs: the one place where this package starts processes.

No shell, an environment made from nothing, output streamed into the build log, and on a time-out or any
exception the whole process group is ended.
"""

import codecs
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from vmbuilder import log
from vmbuilder.errors import CommandFailed, ValidationError

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_TIMEOUT_S: Final = 3600.0

_GRACE_S: Final = 5.0
_DRAIN_S: Final = 2.0
_TAIL_LINES: Final = 8
_OUTPUT_LIMIT: Final = 8 * 1024 * 1024
_CHUNK_BYTES: Final = 65536

Argv = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Completed:
    """A program that ended. `stdout` and `stderr` are text, the last 8 MiB of each."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


def run(
    argv: Argv,
    *,
    chroot: str | os.PathLike[str] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    input: str | None = None,  # noqa: A002 - the name subprocess uses
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    ok: Iterable[int] = (0,),
    secrets: Iterable[str] = (),
    quiet: bool = False,
    on_line: Callable[[str], str | None] | None = None,
) -> Completed:
    """Run a program to its end.

    chroot    run it with this directory as root (only the directory: see vmbuilder.chroot.system_mounts)
    input     text for its standard input, which is empty otherwise; the place for passwords
    env       added to PATH, HOME, LANG=C.UTF-8 and DEBIAN_FRONTEND=noninteractive; nothing else is passed on
    ok        exit codes that are no failure
    secrets   texts shown as *** in the log and in errors
    quiet     keep the output out of the log (the command itself is always shown)
    on_line   is given every line of output and returns what to log in its place, None for nothing

    Raises CommandFailed when it cannot be started, exits otherwise, or takes longer than `timeout_s`.
    """
    words = [os.fspath(word) for word in argv]
    mask = _mask(secrets)
    log.write(log.Level.DEBUG, mask(_shown(words, chroot)))
    started = time.monotonic()
    process = _start(words, chroot=chroot, env=env, cwd=cwd, has_input=input is not None)
    reader = _Reader(process, None if quiet else _log_lines(mask, on_line))
    try:
        in_time = reader.read(input, deadline=started + timeout_s)
        returncode = process.wait(max(0.1, started + timeout_s - time.monotonic())) if in_time else None
    except subprocess.TimeoutExpired:
        returncode = None
    finally:
        _end_group(process)
        reader.close()
    seconds = time.monotonic() - started
    shown = [mask(word) for word in words]
    if returncode is None:
        raise CommandFailed(shown, f"took longer than {timeout_s:g} s", tail=mask(reader.tail()))
    if returncode not in tuple(ok):
        raise CommandFailed(shown, _how(returncode), returncode=returncode, tail=mask(reader.tail()))
    return Completed(tuple(words), returncode, reader.text("stdout"), reader.text("stderr"), seconds)


def find_tool(name: str) -> str | None:
    """Where a program is on the PATH that run() uses, or None."""
    return shutil.which(name, path=PATH)


def require_tools(names: Iterable[str]) -> None:
    """Raise ValidationError naming all programs that are not installed on this node."""
    missing = [name for name in names if find_tool(name) is None]
    if missing:
        raise ValidationError(f"not installed on this node: {', '.join(missing)}")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment programs get."""
    base = {
        "PATH": PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "TMPDIR": "/tmp",
    }
    return {**base, **(extra or {})}


def _start(
    words: list[str],
    *,
    chroot: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    has_input: bool,
) -> subprocess.Popen[bytes]:
    prefix = ["chroot", os.fspath(chroot)] if chroot is not None else []
    if not prefix and find_tool(words[0]) is None:
        raise CommandFailed(words, "is not installed on this node")
    try:
        return subprocess.Popen(
            prefix + words,
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as exc:
        raise CommandFailed(words, f"could not be started: {exc.strerror}") from exc


def _log_lines(
    mask: Callable[[str], str], on_line: Callable[[str], str | None] | None
) -> Callable[[str], None]:
    def take(line: str) -> None:
        shown = on_line(line) if on_line else line
        if shown is not None:
            log.write(log.Level.INFO, mask(shown))

    return take


class _Reader:
    """Feeds a process's input and reads both its outputs, line by line, until both end."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: Callable[[str], None] | None) -> None:
        self._process = process
        self._on_line = on_line
        self._lines: dict[str, deque[str]] = {"stdout": deque(), "stderr": deque()}
        self._sizes = {"stdout": 0, "stderr": 0}
        self._partial = {"stdout": "", "stderr": ""}
        # A multi-byte character may be split between two reads; a bad byte must not end the build.
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._lines}
        self._recent: deque[str] = deque(maxlen=_TAIL_LINES)

    def read(self, text: str | None, *, deadline: float) -> bool:
        """Read to the end of both outputs; False when the deadline came first.

        A daemon left behind may keep the outputs open: once the process itself has ended, they get a short
        while more.
        """
        pending = memoryview((text or "").encode())
        with selectors.DefaultSelector() as selector:
            self._register(selector)
            ended_at: float | None = None
            while selector.get_map():
                now = time.monotonic()
                if now > deadline:
                    return False
                if ended_at is None and self._process.poll() is not None:
                    ended_at = now
                if ended_at is not None and now > ended_at + _DRAIN_S:
                    break
                for key, _ in selector.select(timeout=min(0.5, deadline - now)):
                    if key.data == "stdin":
                        pending = self._feed(selector, pending)
                    elif not self._take(key.data, os.read(key.fd, _CHUNK_BYTES)):
                        selector.unregister(key.fileobj)
        for name in self._lines:
            self._flush(name)
        return True

    def _register(self, selector: selectors.BaseSelector) -> None:
        for name in ("stdin", "stdout", "stderr"):
            stream = getattr(self._process, name)
            if stream is not None:
                event = selectors.EVENT_WRITE if name == "stdin" else selectors.EVENT_READ
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, event, name)

    def _feed(self, selector: selectors.BaseSelector, pending: memoryview) -> memoryview:
        """Write some input; close at its end, or when the process does not want it."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError):
            if pending:
                return pending[os.write(stdin.fileno(), pending[:_CHUNK_BYTES]) :]
        selector.unregister(stdin)
        stdin.close()
        return memoryview(b"")

    def _take(self, name: str, data: bytes) -> bool:
        *lines, self._partial[name] = (self._partial[name] + self._decoders[name].decode(data)).split("\n")
        for line in lines:
            self._line(name, line)
        if len(self._partial[name]) > _OUTPUT_LIMIT:
            self._flush(name)
        return bool(data)

    def _flush(self, name: str) -> None:
        if self._partial[name]:
            self._line(name, self._partial[name])
            self._partial[name] = ""

    def _line(self, name: str, line: str) -> None:
        kept = self._lines[name]
        kept.append(line)
        self._sizes[name] += len(line) + 1
        while self._sizes[name] > _OUTPUT_LIMIT and len(kept) > 1:
            self._sizes[name] -= len(kept.popleft()) + 1
        if line.strip():
            self._recent.append(line.strip())
        if self._on_line is not None:
            self._on_line(line)

    def text(self, name: str) -> str:
        """What was written to "stdout" or "stderr"."""
        return "".join(f"{line}\n" for line in self._lines[name])

    def tail(self) -> str:
        """The last lines of either, as one line."""
        return " / ".join(self._recent)

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started and left behind: ask, wait a little, kill."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _mask(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function replacing every secret in a text."""
    known = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in known:
            text = text.replace(secret, "***")
        return text

    return mask


def _shown(words: Sequence[str], chroot: str | os.PathLike[str] | None) -> str:
    prefix = f"[{os.fspath(chroot)}] " if chroot is not None else ""
    return f"{prefix}$ {shlex.join(words)}"


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"exited with {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"
