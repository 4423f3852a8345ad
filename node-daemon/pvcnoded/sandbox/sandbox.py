"""Opening a sandbox, and the worker's handle on it."""

import contextlib
import errno
import ipaddress
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvccommon.errors import Busy, EnvironmentFault, NotFound, PvcError, TimedOut, WrongInput
from pvcnoded.sandbox import seccomp
from pvcnoded.sandbox.policy import DESCRIPTORS, FILESYSTEMS, SDK_PATH

PYTHON = "/usr/bin/python3"
RUNNER = (PYTHON, "-P", "-s", "-B", "-m", "vmbuilder.runner")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
    "TMPDIR": "/tmp",
    "PYTHONPATH": SDK_PATH,
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # debootstrap skips its probe of mknod(2), systemd and others their services, when they see a container.
    "container": "lxc",
}
REQUEST_TIMEOUT_S = 120.0
END_TIMEOUT_S = 15.0
OUTPUT_TAIL_BYTES = 4096
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class SandboxSpec:
    """What a sandbox is given. `first_uid` starts this build's own range of ids (userns.range_start)."""

    build_id: str
    first_uid: int
    sdk_zip: bytes
    hidden_paths: tuple[str, ...] = ()
    network: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int = 4096
    processes: int = 2048
    denied_networks: tuple[str, ...] = ()


class Sandbox:
    """A running sandbox. Methods may be called from any thread; they run one at a time."""

    def __init__(
        self,
        keeper: subprocess.Popen[bytes],
        control: socket.socket,
        channel: socket.socket,
        output: int,
        status: int,
    ) -> None:
        self.channel = channel
        self.output = output
        self.init_pid = 0
        self.limits: Mapping[str, str] = {}
        self._keeper = keeper
        self._control = control
        self._status = status
        self._returncode: int | None = None
        self._lock = threading.Lock()

    def add_device(self, name: str, major: int, minor: int, links: Sequence[str] = ()) -> None:
        """Make the block device /dev/<name>, owned by the sandbox's root, and links ("rbd/vms/web1_sda").

        Use the kernel's own name (loop3, loop3p1): tools look it up in the mount table. Safe to repeat.
        The device stays in use until `remove_device` or the end.
        """
        self._ask("add_device", f"add device {name}", name=name, major=major, minor=minor, links=list(links))

    def remove_device(self, name: str) -> None:
        """Take a device and its links away. Safe to repeat. Unmount it first."""
        self._ask("remove_device", f"remove device {name}", name=name)

    def mount(
        self,
        device: str,
        path: str,
        filesystem: str,
        *,
        read_only: bool = False,
        options: Mapping[str, str] | Sequence[str] = (),
    ) -> None:
        """Mount an added device ("/dev/loop3p1") at an absolute path inside; directories are made.

        Files of uid 0 inside are files of uid 0 on the disk. Nothing is mounted on the host. WrongInput
        is raised for what is not allowed, EnvironmentFault if the kernel refuses.
        """
        what = f"mount {device} at {path}"
        if filesystem not in FILESYSTEMS:
            raise WrongInput(what, f'file system "{filesystem}" is not one of {", ".join(FILESYSTEMS)}')
        if not path.startswith("/") or "\0" in path:
            raise WrongInput(what, "the path is not absolute")
        wanted = parse_options(options)
        unknown = sorted(set(wanted) - FILESYSTEMS[filesystem])
        if unknown:
            raise WrongInput(what, f"mount options not allowed for {filesystem}: {', '.join(unknown)}")
        arguments = {"device": device, "path": path, "filesystem": filesystem, "read_only": read_only}
        self._ask("mount", what, **arguments, options=wanted)

    def unmount(self, path: str) -> None:
        """Unmount a path of the sandbox. Raises Busy while files there are open, NotFound if none is."""
        self._ask("unmount", f"unmount {path}", path=path)

    def wait(self, timeout_s: float) -> int | None:
        """Exit status of the main program (negative: by signal), or None if it has not ended in time."""
        if self._returncode is None:
            if not _readable(self._status, timeout_s):
                return None
            text = os.read(self._status, 64)
            self._returncode = int(text) if text.strip() else -signal.SIGKILL
        return self._returncode

    def kill(self) -> None:
        """End every process of the sandbox and wait until all is gone. Safe to repeat, from any thread."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._keeper.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # A helper may hang in the kernel; the rest ends with the keeper all the same.
            self._keeper.kill()
            self._keeper.wait(END_TIMEOUT_S)

    def start(self, **arguments: Any) -> None:
        answer = self._ask("start", "open sandbox", **arguments)
        self.init_pid = answer["init_pid"]
        self.limits = answer["limits"]

    def _ask(self, verb: str, what: str, **arguments: Any) -> dict[str, Any]:
        packet = json.dumps({"verb": verb, **arguments}).encode()
        with self._lock:
            try:
                self._control.send(packet)
                answer = json.loads(self._control.recv(1 << 20) or b"null")
            except TimeoutError as exc:
                # The answer may still come, and would be taken for that of the next request.
                self._control.shutdown(socket.SHUT_RDWR)
                raise TimedOut(what, f"no answer after {REQUEST_TIMEOUT_S:g} s") from exc
            except OSError as exc:
                raise EnvironmentFault(what, f"the sandbox has ended ({exc.strerror or exc})") from exc
        if answer is None:
            raise EnvironmentFault(what, "the sandbox has ended", self._tail())
        if not answer["ok"]:
            raise self._error(verb, what, answer)
        return dict(answer)

    def _error(self, verb: str, what: str, answer: Mapping[str, Any]) -> PvcError:
        text = answer["text"]
        if verb == "unmount" and answer["errno"] == errno.EBUSY:
            return Busy(what, "files there are open, or something is mounted below")
        if verb == "unmount" and answer["errno"] in (errno.EINVAL, errno.ENOENT):
            return NotFound(what, "nothing is mounted there")
        if verb == "start":
            return EnvironmentFault(what, "; ".join(filter(None, (text, self._tail()))))
        if answer["errno"] is None:
            return WrongInput(what, text)
        return EnvironmentFault(what, text)

    def _tail(self) -> str:
        """What the programs that open a sandbox have printed, for their error messages."""
        if not _readable(self.output, 0.1):
            return ""
        return os.read(self.output, OUTPUT_TAIL_BYTES).decode(errors="replace").strip()


@contextlib.contextmanager
def open_sandbox(spec: SandboxSpec, *, command: Sequence[str] | None = None) -> Iterator[Sandbox]:
    """Start a sandbox; its main program (the SDK's runner, or `command`) runs when the block is entered.

    Everything ends with the block, with the worker, or with the thread that opened it. Raises WrongInput
    (environment), EnvironmentFault (bwrap, slirp4netns or a kernel feature is missing).
    """
    check_spec(spec)
    with contextlib.ExitStack() as stack:
        sandbox = _launch(spec, command or RUNNER, stack)
        yield sandbox


def _launch(spec: SandboxSpec, command: Sequence[str], stack: contextlib.ExitStack) -> Sandbox:
    with (
        contextlib.ExitStack() as handed
    ):  # the other side's ends: closed here as soon as the keeper has them
        channel, inner_channel = _socket_pair(socket.SOCK_STREAM, stack, handed)
        control, inner_control = _socket_pair(socket.SOCK_SEQPACKET, stack, handed)
        output, inner_output = _pipe(stack, handed)
        status, inner_status = _pipe(stack, handed)
        sdk = _memory_file("sdk", spec.sdk_zip, handed)
        filter_fd = _memory_file("seccomp", _filter_program(), handed)
        fds = {
            "channel_fd": inner_channel.fileno(),
            "output_fd": inner_output,
            "status_fd": inner_status,
            "sdk_fd": sdk,
            "seccomp_fd": filter_fd,
        }
        keeper = _start_keeper(inner_control.fileno(), tuple(fds.values()))
    control.settimeout(REQUEST_TIMEOUT_S)
    sandbox = Sandbox(keeper, control, channel, output, status)
    stack.callback(sandbox.kill)
    sandbox.start(
        **fds,
        first_uid=spec.first_uid,
        hidden_paths=list(spec.hidden_paths),
        denied_networks=list(spec.denied_networks),
        network=spec.network,
        memory_mib=spec.memory_mib,
        processes=spec.processes,
        command=list(command),
        environment={**ENVIRONMENT, **spec.environment, "PVC_CHANNEL_FD": str(DESCRIPTORS["channel_fd"])},
    )
    return sandbox


def _readable(fd: int, timeout_s: float) -> bool:
    """Whether there is something to read, or the end, within the time; any descriptor number (not select)."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def check_spec(spec: SandboxSpec) -> None:
    """WrongInput for what would otherwise fail late or weaken the sandbox."""
    what = f"open sandbox of build {spec.build_id}"
    bad = [
        name
        for name, value in spec.environment.items()
        if not ENVIRONMENT_NAME.fullmatch(name) or "\0" in value
    ]
    if bad:
        raise WrongInput(what, f"environment variables are not valid: {', '.join(bad)}")
    if spec.first_uid < 65536:
        raise WrongInput(what, f"first_uid {spec.first_uid} lies among the host's own users")
    for network in spec.denied_networks:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError as exc:
            raise WrongInput(what, f"denied network {exc}") from exc
    if any(not os.path.isabs(path) for path in spec.hidden_paths):
        raise WrongInput(what, "hidden paths must be absolute")


def parse_options(options: Mapping[str, str] | Sequence[str]) -> dict[str, str | None]:
    """Mount options as name → value; None for a flag. A sequence holds "name" or "name=value"."""
    if isinstance(options, Mapping):
        return dict(options)
    pairs = (option.partition("=") for option in options)
    return {name: value if equals else None for name, equals, value in pairs}


def _start_keeper(control_fd: int, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Our package by its directory only: -I and -S keep every other module path out, and the start quick."""
    root = str(Path(__file__).resolve().parents[2])
    code = (
        f"import sys; sys.path.insert(0, {root!r}); "
        f"from pvcnoded.sandbox import keeper; keeper.main({control_fd}, {os.getpid()})"
    )
    return subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if sys.flags.dev_mode else subprocess.DEVNULL,
        env={"LANG": "C.UTF-8"},
        cwd="/",
        pass_fds=(control_fd, *fds),
        start_new_session=True,
    )


def _filter_program() -> bytes:
    try:
        return seccomp.filter_program()
    except OSError as exc:
        raise EnvironmentFault("open sandbox", str(exc), "install the package libseccomp2") from exc


def _socket_pair(
    kind: socket.SocketKind, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    outer, inner = socket.socketpair(socket.AF_UNIX, kind)
    return ours.enter_context(outer), theirs.enter_context(inner)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    return reader, writer


def _memory_file(name: str, content: bytes, stack: contextlib.ExitStack) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    with open(os.dup(fd), "wb") as stream:
        stream.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
