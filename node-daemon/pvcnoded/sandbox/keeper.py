"""The keeper: one small, single-threaded root process per sandbox.

The worker may have threads, so it cannot fork safely; the keeper can. It makes the user namespace and the
walls, starts bwrap and slirp4netns, adds devices, mounts volumes, and takes everything down when it is told
to, when the worker's end of the socket closes, or when the worker dies. Killed itself, the kernel ends the
rest: bwrap is process 1 of a process namespace and bound to the keeper, slirp4netns watches its pipe.

Imports only small modules, because every build waits for them. One JSON document a SOCK_SEQPACKET packet:
    worker → keeper   {"verb": "start"|"add_device"|"remove_device"|"mount"|"unmount"|"end", …arguments}
    keeper → worker   {"ok": true, …} or {"ok": false, "errno": n, "text": "…"}
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import stat
import sys
from typing import Any, NoReturn

from pvcnoded.sandbox import devices, limits, mounts, network, userns, volumes, walls
from pvcnoded.sandbox.policy import DESCRIPTORS, PRELUDE, bwrap_arguments

BWRAP = "/usr/bin/bwrap"
MESSAGE_BYTES = 1 << 20
START_TIMEOUT_S = 15.0
END_TIMEOUT_S = 10.0

Message = dict[str, Any]


class Keeper:
    """The parts of one sandbox, in the order they are made."""

    def __init__(self) -> None:
        self._namespaces: volumes.Namespaces | None = None
        self._devices: devices.DeviceDirectory | None = None
        self._groups: limits.ControlGroups | None = None
        self._network: network.Network | None = None
        self._bwrap_pid = 0
        self._init_fd = -1
        self._status_fd = -1
        self.bwrap_fd = -1

    def start(self, message: Message) -> Message:
        """Make everything and let the main program run.

        Descriptors arrive by number: output, channel, sdk, seccomp (theirs are closed here), status.
        """
        first_uid = int(message["first_uid"])
        self._status_fd = int(message["status_fd"])
        user = userns.create_user_namespace(first_uid, int(message["processes"]))
        self._devices = devices.DeviceDirectory(first_uid)
        self._groups = limits.ControlGroups(memory_mib=message["memory_mib"], processes=message["processes"])
        go, our_go = os.pipe()
        our_ready, ready = os.pipe()
        launch = {**message, "userns_fd": user, "go_fd": go, "ready_fd": ready}
        self._bwrap_pid = self._fork_into_new_pid_namespace(launch, keep=(our_go, our_ready))
        self.bwrap_fd = os.pidfd_open(self._bwrap_pid)
        for fd in (go, ready, *(int(message[name]) for name in _HANDED_OVER)):
            os.close(fd)
        self._groups.add(self._bwrap_pid)
        os.write(our_go, b"g")
        self._wait_for_prelude(our_ready)
        init = self._first_process()
        self._init_fd = os.pidfd_open(init)
        self._namespaces = volumes.Namespaces(user, _open_namespace(init, "mnt"))
        if message["network"]:
            self._connect(init, message["denied_networks"])
        os.write(our_go, b"\n")
        os.close(our_go)
        return {"init_pid": init, "limits": self._groups.enforced}

    def _connect(self, init: int, denied: list[str]) -> None:
        assert self._namespaces is not None
        network.wait_loopback(init)
        netns = _open_namespace(init, "net")
        try:
            networks = network.denied_networks(denied)
            self._network = network.Network(netns, self._namespaces.user)
            network.deny_networks(netns, self._namespaces.user, networks)
            self._network.wait_ready()
        finally:
            os.close(netns)

    def _fork_into_new_pid_namespace(self, launch: Message, keep: tuple[int, ...]) -> int:
        """Fork bwrap-to-be as process 1 of a new process namespace; later children stay outside."""
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        mounts.unshare(mounts.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            for fd in keep:
                os.close(fd)
            _become_bwrap(launch, self._device_directory())
        mounts.setns(own, mounts.CLONE_NEWPID)
        os.close(own)
        return pid

    def _wait_for_prelude(self, ready: int) -> None:
        """Wait until everything inside stands; OSError if bwrap or the prelude ends before."""
        text = b""
        while not text.endswith(b"ready\n"):
            readable, _, _ = select.select([ready], [], [], START_TIMEOUT_S)
            chunk = os.read(ready, 4096) if readable else b""
            if not chunk:
                raise OSError("start bwrap: it ended early" if readable else "start bwrap: no answer")
            text += chunk
        os.close(ready)

    def _first_process(self) -> int:
        """Process id, as the keeper sees it, of the first process inside: bwrap's only child.

        bwrap itself (--info-fd) would tell the number of its own process namespace.
        """
        with open(f"/proc/{self._bwrap_pid}/task/{self._bwrap_pid}/children") as children:
            return int(children.read().split()[0])

    def add_device(self, message: Message) -> Message:
        self._device_directory().add(message["name"], message["major"], message["minor"], message["links"])
        return {}

    def remove_device(self, message: Message) -> Message:
        self._device_directory().remove(message["name"])
        return {}

    def mount(self, message: Message) -> Message:
        """Only a device the sandbox has anyway, found by the kernel's own name of it."""
        name = message["device"].removeprefix("/dev/")
        path = f"/dev/{name}"
        try:
            number = self._device_directory().number(name)
        except KeyError:
            raise OSError(f"mount {path}: the sandbox has no such device") from None
        seen = os.stat(path)
        if not stat.S_ISBLK(seen.st_mode) or seen.st_rdev != number:
            raise OSError(f"mount {path}: it is another device on the host")
        assert self._namespaces is not None
        arguments = (message["path"], message["filesystem"], message["read_only"], message["options"])
        volumes.mount_volume(self._namespaces, path, *arguments)
        return {}

    def unmount(self, message: Message) -> Message:
        assert self._namespaces is not None
        volumes.unmount_volume(self._namespaces, message["path"])
        return {}

    def report_end(self) -> None:
        """bwrap has ended: hand its exit status to whoever waits for it. Safe to repeat."""
        if self.bwrap_fd < 0:
            return
        status = os.waitstatus_to_exitcode(os.waitpid(self._bwrap_pid, 0)[1])
        os.close(self.bwrap_fd)
        self.bwrap_fd = -1
        with contextlib.suppress(BrokenPipeError):
            os.write(self._status_fd, f"{status}\n".encode())
        os.close(self._status_fd)

    def end(self) -> None:
        """Kill every process inside, wait for it, and free what the kernel does not free by itself."""
        if self.bwrap_fd >= 0:
            # bwrap is process 1 of a process namespace that holds the sandbox's: all go at once.
            target = self._init_fd if self._init_fd >= 0 else self.bwrap_fd
            for fd in (target, self.bwrap_fd):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([self.bwrap_fd], [], [], END_TIMEOUT_S)
            self.report_end()
        if self._namespaces is not None:
            # Unmounts what is left, at once; at the exit of a process the kernel would do it a little later.
            for fd in self._namespaces:
                os.close(fd)
        if self._network is not None:
            self._network.close()
        if self._devices is not None:
            self._devices.remove_all()
        if self._groups is not None:
            self._groups.close()

    def _device_directory(self) -> devices.DeviceDirectory:
        if self._devices is None:
            raise OSError("the sandbox has not been started")
        return self._devices


# Descriptors that only bwrap and the main program may keep open.
_HANDED_OVER = ("output_fd", "channel_fd", "sdk_fd", "seccomp_fd")


def _open_namespace(pid: int, name: str) -> int:
    return os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)


def _become_bwrap(launch: Message, device_directory: devices.DeviceDirectory) -> NoReturn:
    """In the forked child: wait for the go, build the walls, drop root, replace this process by bwrap."""
    output = launch["output_fd"]
    try:
        mounts.prctl(mounts.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.read(launch["go_fd"], 1) != b"g":
            os._exit(1)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for fd, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, target)
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        limits.limit_this_process()
        mounts.unshare(mounts.CLONE_NEWNS)
        walls.build_walls(
            owner=launch["first_uid"],
            dev_fd=device_directory.fd,
            memory_mib=launch["memory_mib"],
            hidden_paths=launch["hidden_paths"],
            network=launch["network"],
        )
        arguments = _write_arguments(launch)
        _hand_over({**launch, "arguments_fd": arguments})
        userns.drop_to(launch["first_uid"])
        mounts.prctl(mounts.PR_SET_PDEATHSIG, signal.SIGKILL)  # changing ids has cleared it
        os.execve(
            BWRAP,
            [
                BWRAP,
                "--args",
                str(DESCRIPTORS["arguments_fd"]),
                "/bin/sh",
                "-c",
                PRELUDE,
                "sandbox",
                *launch["command"],
            ],
            {},
        )
    except OSError as exc:
        os.write(output, f"sandbox: {exc}\n".encode())
    finally:
        os._exit(125)


def _hand_over(launch: Message) -> None:
    """Give bwrap its descriptors under the policy's numbers; all others close when it is executed."""
    beyond = max(DESCRIPTORS.values()) + 1
    copies = {name: fcntl.fcntl(launch[name], fcntl.F_DUPFD_CLOEXEC, beyond) for name in DESCRIPTORS}
    for name, number in DESCRIPTORS.items():
        os.dup2(copies[name], number)


def _write_arguments(launch: Message) -> int:
    """bwrap's arguments by descriptor: the environment must not show in the host's process list."""
    arguments = bwrap_arguments(DESCRIPTORS)
    for name, value in launch["environment"].items():
        arguments += ["--setenv", name, value]
    fd = os.memfd_create("arguments", os.MFD_CLOEXEC)
    os.write(fd, b"".join(os.fsencode(part) + b"\0" for part in arguments))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _serve(keeper: Keeper, control: socket.socket) -> None:
    """Answer until the worker says "end" or is gone."""
    verbs = {
        "start": keeper.start,
        "add_device": keeper.add_device,
        "remove_device": keeper.remove_device,
        "mount": keeper.mount,
        "unmount": keeper.unmount,
    }
    while True:
        watched = [control.fileno(), *([keeper.bwrap_fd] if keeper.bwrap_fd >= 0 else [])]
        readable, _, _ = select.select(watched, [], [])
        if keeper.bwrap_fd in readable:
            keeper.report_end()
        if control.fileno() not in readable:
            continue
        packet = control.recv(MESSAGE_BYTES)
        if not packet or (message := json.loads(packet))["verb"] == "end":
            return
        try:
            answer = {"ok": True, **verbs[message["verb"]](message)}
        except (OSError, ValueError) as exc:
            number = exc.errno if isinstance(exc, OSError) else None
            answer = {"ok": False, "errno": number, "text": getattr(exc, "strerror", None) or str(exc)}
        control.send(json.dumps(answer).encode())


def _keep_descriptors_private() -> None:
    """What the worker handed over must not reach any program by itself, above all not the control socket."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            os.set_inheritable(int(name), False)


def _end_on_signal(_number: int, _frame: object) -> NoReturn:
    sys.exit(0)


def main(control_fd: int, worker_pid: int) -> None:
    signal.signal(signal.SIGTERM, _end_on_signal)
    # The worker may be killed in a way that leaves its end of the socket open in a child of its own.
    mounts.prctl(mounts.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != worker_pid:
        return
    _keep_descriptors_private()
    keeper = Keeper()
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _serve(keeper, socket.socket(fileno=control_fd))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper.end()
