"""Images as plain files: qemu-storage-daemon's FUSE export, with nothing to clean up.

The daemon gets a mount namespace of its own and mounts the export there, over the file it is told to use;
we open it through /proc/<pid>/root. No other process ever sees the mount, and the kernel drops it with the
daemon, which in turn gets SIGKILL when our process dies. There is no mount point to make or remove.

A loop device on an export must not use direct I/O: that sends several writes at a time, and QEMU 7.2 then
writes one request's data in another's place (its FUSE export handles requests while it waits for a write,
with one buffer for all). Without direct I/O the kernel sends one write at a time, under the inode's lock.
"""

import ctypes
import json
import logging
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

from pvccommon.errors import EnvironmentFault, PvcError
from pvccommon.run import SAFE_PATH, end_process_group
from pvccommon.storage.faults import os_errors, qemu_fault
from pvccommon.storage.image_users import ProcessIdentity

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0  # it writes its caches first
WATCH_EVERY_S = 5.0
NODE = "volume"
OWNER = "PVC_EXPORT_OWNER"  # names the daemon's owner in its environment
PR_SET_IO_FLUSHER = 57  # linux/prctl.h; children inherit it

Watch = Callable[[], PvcError | None]

# The shell closes a gap: a parent that died before setpriv had asked for the signal would never be missed.
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private")
IF_PARENT_LIVES = ("sh", "-c", '[ "$PPID" = "$1" ] || exit 1; shift; exec "$@"', "sh")


@contextmanager
def open_export(
    image: Mapping[str, Any],
    what: str,
    *,
    read_only: bool = False,
    locks: Collection[int] = (),
    environment: Mapping[str, str] | None = None,
    mountpoint: str = __file__,
    watch: Watch | None = None,
) -> Iterator[int]:
    """A descriptor of a file with the raw content of an image, until the context ends or the process dies.

    `image` is QEMU's description (BlockdevOptions in QAPI) without "node-name"; any driver will do. `what`
    is named in errors. `locks` are descriptors the daemon keeps open, so that a lock on one lasts until the
    daemon is gone, too: the export itself shares the image with everybody. `mountpoint` is any existing
    regular file; only the daemon sees it covered. Everything opened through the descriptor (a loop device)
    must be closed before the context ends.

    `watch` is asked every few seconds. An error it answers with ends the daemon: whoever waits for a read or
    write gets EIO, instead of waiting for ever, and the error is raised at the end of the context.
    """
    command = _command(image, read_only, mountpoint)
    with _daemon(command, what, locks, environment or {}, watch) as process:
        with os_errors(what):
            mode = os.O_RDONLY if read_only else os.O_RDWR
            fd = os.open(f"/proc/{process.pid}/root{mountpoint}", mode | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            # Closing asks the daemon to flush; that it is gone is reported below.
            with suppress(OSError):
                os.close(fd)


def _command(image: Mapping[str, Any], read_only: bool, mountpoint: str) -> list[str]:
    export = {
        "type": "fuse",
        "id": NODE,
        "node-name": NODE,
        "mountpoint": mountpoint,
        "writable": not read_only,
        "allow-other": "off",
    }
    return [
        "qemu-storage-daemon",
        "--blockdev", json.dumps({**image, "node-name": NODE}),
        "--export", json.dumps(export),
        # Options are carried out in order: the monitor greets when the export stands.
        "--chardev", "stdio,id=monitor",
        "--monitor", "monitor",
    ]  # fmt: skip


@contextmanager
def _daemon(
    command: list[str],
    what: str,
    locks: Collection[int],
    environment: Mapping[str, str],
    watch: Watch | None,
) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as errors:
        argv = [*WITH_PARENT, *IF_PARENT_LIVES, str(os.getpid()), *command]
        keeper = _Keeper(argv, errors, locks, environment)
        process = keeper.launch(what)
        try:
            _wait_until_ready(process, errors, what)
            with _watched(process, watch):
                try:
                    yield process
                except BaseException:
                    end_process_group(process, grace_s=STOP_TIMEOUT_S)
                    raise
                _stop(process, errors, what)
        except BaseException:
            end_process_group(process)
            raise


@contextmanager
def _watched(process: subprocess.Popen[bytes], watch: Watch | None) -> Iterator[None]:
    """Ask `watch` until the context ends; its error, if there was one, is the one that is raised."""
    if watch is None:
        yield
        return
    ended, found = threading.Event(), list[PvcError]()

    def ask() -> None:
        while not ended.wait(WATCH_EVERY_S):
            if fault := watch():
                found.append(fault)
                process.kill()
                return

    thread = threading.Thread(target=ask, name="export-watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception as exc:
        if found:
            raise found[0] from exc
        raise
    finally:
        ended.set()


class _Keeper:
    """A thread that starts the daemon and lives as long.

    The parent-death signal is sent when the *thread* that forked ends, not its process: prctl(2).
    """

    def __init__(
        self,
        command: list[str],
        errors: IO[bytes],
        locks: Collection[int],
        environment: Mapping[str, str],
    ) -> None:
        self._command = command
        self._environment = environment
        self._errors = errors
        self._locks = locks
        self._launched = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None

    def launch(self, what: str) -> subprocess.Popen[bytes]:
        """Start the daemon; the caller ends and reaps it."""
        threading.Thread(target=self._keep, name="storage-export", daemon=True).start()
        self._launched.wait()
        if self._process is None:
            raise EnvironmentFault(what, f"cannot start: {self._error}", "is util-linux installed?")
        return self._process

    def _keep(self) -> None:
        # We serve the kernel's writes: waiting for other writes to make memory free could wait for ourselves.
        ctypes.CDLL(None).prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={
                    "PATH": SAFE_PATH,
                    "LANG": "C.UTF-8",
                    OWNER: ProcessIdentity.current().text,
                    **self._environment,
                },
                start_new_session=True,
                pass_fds=tuple(self._locks),
            )
        except OSError as exc:
            self._error = exc
        self._launched.set()
        if self._process is not None:
            # Not reaped here, so that the process id stays ours until the context ends.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


def _wait_until_ready(process: subprocess.Popen[bytes], errors: IO[bytes], what: str) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    ready, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
    if not ready:
        raise EnvironmentFault(what, f"qemu-storage-daemon is not ready after {START_TIMEOUT_S:g} s")
    if not os.read(process.stdout.fileno(), 65536):
        process.wait()
        raise qemu_fault(what, _text(errors))


def _stop(process: subprocess.Popen[bytes], errors: IO[bytes], what: str) -> None:
    """Let the daemon write its caches and end; raises when it had ended before, or does not end well."""
    early = process.poll() is not None
    end_process_group(process, grace_s=STOP_TIMEOUT_S)
    if early or process.returncode != 0:
        raise qemu_fault(what, _text(errors) or f"qemu-storage-daemon ended with {process.returncode}")


def _text(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read(65536).decode(errors="replace")
