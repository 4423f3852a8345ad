"""The sandbox's way out: slirp4netns, running with the rights of the sandbox's root and no more.

Traffic leaves as ordinary sockets of the build's first user id, so that an operator can also filter it on the
host by user id.
"""

import contextlib
import ipaddress
import os
import select
import signal
import stat
import time
from collections.abc import Iterable, Iterator

from pvcnoded.sandbox import mounts
from pvcnoded.sandbox.policy import DENIED_NETWORKS
from pvcnoded.sandbox.userns import drop_to

SLIRP = "/usr/bin/slirp4netns"
IP = "/usr/sbin/ip"
READY_TIMEOUT_S = 10.0
MTU = 1400
TUN = (10, 200)  # Documentation/admin-guide/devices.txt


class Network:
    """A running slirp4netns. Ends by `close()`, or when the process that made it ends."""

    def __init__(self, netns_fd: int, userns_fd: int) -> None:
        """Start connecting a network namespace that belongs to the user namespace; see `wait_ready`."""
        self._ready, ready = os.pipe()
        leave, self._exit = os.pipe()
        self._report = os.memfd_create("slirp4netns", os.MFD_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _become_slirp(netns_fd, userns_fd, ready, leave, self._report)
        os.close(ready)
        os.close(leave)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        readable, _, _ = select.select([self._ready], [], [], max(0.0, deadline - time.monotonic()))
        answer = os.read(self._ready, 1) if readable else b""
        if answer != b"1":
            text = os.pread(self._report, 4096, 0).decode(errors="replace").strip()
            raise OSError(f"start slirp4netns: {text or 'it did not become ready'}")

    def close(self) -> None:
        for fd in (self._exit, self._ready, self._report):
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def wait_loopback(pid: int) -> None:
    """Until the loopback device of a process's network namespace is up.

    bwrap gives it its address and fails when it has one; slirp4netns, too, brings it up, and the kernel then
    adds the address by itself. So slirp4netns must come second.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while "host LOCAL" not in _read(f"/proc/{pid}/net/fib_trie"):
        if time.monotonic() > deadline:
            raise OSError("start bwrap: its loopback device does not come up")
        time.sleep(0.001)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _become_slirp(netns_fd: int, userns_fd: int, ready: int, leave: int, report: int) -> None:
    """In a forked child: own /dev/net/tun, become the sandbox's root, replace this process. Never returns."""
    try:
        _open_tun()
        null = os.open("/dev/null", os.O_RDWR)
        for fd, target in ((null, 0), (null, 1), (report, 2)):
            os.dup2(fd, target)
        for fd in (ready, leave, netns_fd):
            os.set_inheritable(fd, True)
        # With a network namespace by descriptor, slirp4netns 1.2 cannot enter the user namespace by itself.
        mounts.setns(userns_fd, mounts.CLONE_NEWUSER)
        drop_to(0)
        os.execve(SLIRP, slirp_arguments(netns_fd, ready, leave), {"PATH": "/usr/sbin:/usr/bin"})
    except OSError as exc:
        os.write(report, str(exc).encode())
    finally:
        os._exit(127)


def slirp_arguments(netns_fd: int, ready: int, leave: int) -> list[str]:
    return [
        SLIRP,
        "--configure",
        f"--mtu={MTU}",
        "--disable-host-loopback",
        "--enable-sandbox",
        "--enable-seccomp",
        f"--ready-fd={ready}",
        f"--exit-fd={leave}",
        "--netns-type=path",
        f"/proc/self/fd/{netns_fd}",
        "tap0",
    ]


def _open_tun() -> None:
    """Give this process a /dev/net/tun that an unprivileged user may open, whatever the host's mode is."""
    mounts.unshare(mounts.CLONE_NEWNS)
    mounts.make_private()
    os.stat("/dev/net/tun")
    mounts.mount("tmpfs", "/dev/net", "tmpfs", mounts.MS_NOSUID | mounts.MS_NOEXEC, "mode=0755,size=4k")
    os.mknod("/dev/net/tun", stat.S_IFCHR | 0o666, os.makedev(*TUN))
    os.chmod("/dev/net/tun", 0o666)


def deny_networks(netns_fd: int, userns_fd: int, networks: Iterable[str]) -> None:
    """Make networks unreachable from a sandbox: routes it has no capability to remove.

    Done by ip(8) in a forked child that holds the sandbox's rights only.
    """
    batch = os.memfd_create("routes", os.MFD_CLOEXEC)
    os.pwrite(batch, "".join(f"route replace prohibit {network}\n" for network in networks).encode(), 0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become_ip(netns_fd, userns_fd, batch, writer)
    os.close(writer)
    os.close(batch)
    with open(reader, "rb") as stream:
        text = stream.read().decode(errors="replace").strip()
    if os.waitpid(child, 0)[1] != 0:
        raise OSError(f"deny networks: {text}")


def _become_ip(netns_fd: int, userns_fd: int, batch: int, output: int) -> None:
    """In a forked child: enter the sandbox's network as its root and replace this process. Never returns."""
    try:
        mounts.setns(userns_fd, mounts.CLONE_NEWUSER)
        mounts.setns(netns_fd, mounts.CLONE_NEWNET)
        drop_to(0)
        for fd, target in ((batch, 0), (output, 1), (output, 2)):
            os.dup2(fd, target)
        os.execve(IP, [IP, "-batch", "-"], {"PATH": "/usr/sbin:/usr/bin"})
    except OSError as exc:
        os.write(output, str(exc).encode())
    finally:
        os._exit(127)


def denied_networks(extra: Iterable[str]) -> list[str]:
    """The policy's networks, all IPv4 addresses of the host, and the caller's; ValueError for a bad one."""
    wanted = [*(rule.what for rule in DENIED_NETWORKS), *extra, *host_addresses()]
    parsed = dict.fromkeys(ipaddress.ip_network(network, strict=False) for network in wanted)
    return [str(network) for network in parsed if network.version == 4 and not network.is_loopback]


def host_addresses() -> Iterator[str]:
    """The local IPv4 addresses of this network namespace (fib_trie: a leaf followed by "host LOCAL")."""
    leaf = ""
    with open("/proc/net/fib_trie") as table:
        for line in table:
            if "|-- " in line:
                leaf = line.split("|-- ")[1].strip()
            elif "host LOCAL" in line and leaf:
                yield leaf
