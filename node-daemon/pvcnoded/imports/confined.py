"""A Python program with no rights: no files but its own code, no network unless given, no other processes.

For programs that read untrusted data from standard input and write to standard output. They run as `nobody`,
in a user namespace of their own without capabilities, and end with this process.
"""

import contextlib
import fcntl
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

import pvccommon
from pvccommon.run import SAFE_PATH
from pvccommon.storage.pool import BlockDevice

ACCOUNT = "nobody"
MEMORY_BYTES = 1024**3
OPEN_FILES = 64
# Of standard input and output, instead of 64 KiB: the program and this process wait less for each other.
PIPE_BYTES = 1024**2
CODE = "/code"
# What Python and its libraries need, where there is such a path; all read-only.
VISIBLE = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")


# What finding a server and trusting it needs besides.
VISIBLE_WITH_NETWORK = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
)


# Block devices stand in a file system of the program's own, made before it loses its rights: it ends with the
# program. Arguments: how many devices; name, major and minor of each; the program.
WITH_DEVICES = """set -e
mount -t tmpfs -o mode=0755,noexec,nosuid pvc-devices /mnt
count=$1; shift
for _ in $(seq "$count"); do
    mknod -m 0600 "/mnt/$1" b "$2" "$3"; chown nobody "/mnt/$1"; shift 3
done
exec "$@"
"""


class ConfinedProcess(subprocess.Popen[bytes]):
    """`kill` ends all of its group.

    bwrap's child dies with it, but for the moments when it waits for bwrap to make its namespace: then it
    would wait for ever. It is of the same group until it can no longer be left behind.
    """

    def kill(self) -> None:
        if self.returncode is None:  # else the number may be another's
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def confined_program(
    module: str,
    arguments: Sequence[str],
    *,
    cpu_s: int,
    network: bool = False,
    devices: Mapping[str, BlockDevice] = MappingProxyType({}),
) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python module of ours; see `confined`."""
    argv = [sys.executable, "-P", "-m", module, *arguments]
    with confined(argv, cpu_s=cpu_s, network=network, devices=devices) as process:
        yield process


@contextmanager
def confined(
    argv: Sequence[str],
    *,
    cpu_s: int,
    network: bool = False,
    devices: Mapping[str, BlockDevice] = MappingProxyType({}),
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator["subprocess.Popen[bytes]"]:
    """The running program, its standard input, output and errors as pipes; killed at the end of the block.

    `cpu_s`: processor time it may use. `network`: it has this host's network. `devices`: what it may open,
    as /dev/<name>.
    """
    code = Path(pvccommon.__file__).parent
    walls = _walls(code, network, devices)
    process = ConfinedProcess(
        [*_devices(devices), *_limits(cpu_s, memory_bytes), *_as_nobody(), *walls, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": SAFE_PATH},
        start_new_session=True,
        cwd="/",
    )
    try:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _widen(pipe)
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _widen(pipe: IO[bytes]) -> None:
    """What the kernel refuses (fs.pipe-max-size) stays as it is: slower."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _devices(devices: Mapping[str, BlockDevice]) -> list[str]:
    if not devices:
        return []
    own_mounts = ["unshare", "--mount", "--propagation", "private", "sh", "-c", WITH_DEVICES, "sh"]
    nodes = [
        word for name, device in devices.items() for word in (name, str(device.major), str(device.minor))
    ]
    return [*own_mounts, str(len(devices)), *nodes]


def _limits(cpu_s: int, memory_bytes: int) -> list[str]:
    return [
        "prlimit",
        f"--as={memory_bytes}",
        f"--cpu={cpu_s}",
        f"--nofile={OPEN_FILES}",
        "--fsize=0",
        "--core=0",
        "--",
    ]


def _as_nobody() -> list[str]:
    account = pwd.getpwnam(ACCOUNT)
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]


def _walls(code: Path, network: bool, devices: Mapping[str, BlockDevice]) -> list[str]:
    visible = (*VISIBLE, *VISIBLE_WITH_NETWORK) if network else VISIBLE
    binds = [word for path in visible if os.path.exists(path) for word in ("--ro-bind", path, path)]
    return [
        "bwrap",
        "--unshare-all",
        *(["--share-net"] if network else []),
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        *binds,
        "--ro-bind",
        str(code),
        f"{CODE}/{code.name}",
        "--dev",
        "/dev",
        *(word for name in devices for word in ("--dev-bind", f"/mnt/{name}", f"/dev/{name}")),
        "--proc",
        "/proc",
        "--clearenv",
        "--setenv",
        "PYTHONPATH",
        CODE,
        "--setenv",
        "PYTHONDONTWRITEBYTECODE",
        "1",
        "--chdir",
        "/",
        "--",
    ]
