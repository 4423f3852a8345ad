"""Working inside a mounted root directory."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from vmbuilder.command import run

# What programs of the target find there. Bound with everything below them: in a user namespace the kernel
# refuses a bind that would uncover what a mount hides.
_BOUND: Final = ("/proc", "/sys", "/dev")

_POLICY: Final = "#!/bin/sh\n# A build must not start services.\nexit 101\n"


@contextmanager
def system_mounts(root: str | os.PathLike[str]) -> Iterator[None]:
    """/proc, /sys and /dev of the sandbox, and an empty /run, inside `root` while the block runs."""
    with ExitStack() as undo:
        for path in _BOUND:
            place = Path(root, path.lstrip("/"))
            place.mkdir(exist_ok=True)
            run(["mount", "--rbind", path, place], timeout_s=30)
            undo.callback(_unmount, place)
            run(["mount", "--make-rslave", place], timeout_s=30)
        place = Path(root, "run")
        place.mkdir(exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", place], timeout_s=30)
        undo.callback(_unmount, place)
        yield


@contextmanager
def no_services(root: str | os.PathLike[str]) -> Iterator[None]:
    """Keep package scripts run inside `root` from starting services."""
    policy = Path(root, "usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


@contextmanager
def entered(root: str | os.PathLike[str]) -> Iterator[None]:
    """Make `root` this process's root directory while the block runs. May be nested.

    Modules not imported before are looked for inside. Prefer run(…, chroot=root), which needs no such care.
    """
    old_root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    old_directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chroot(root)
        os.chdir("/")
        yield
    finally:
        os.fchdir(old_root)
        os.chroot(".")
        os.fchdir(old_directory)
        os.close(old_root)
        os.close(old_directory)


def end_processes(root: str | os.PathLike[str]) -> list[int]:
    """Kill what still works below `root`, such as a daemon a package has started; returns the ids."""
    ended = [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _works_in(pid, str(root))]
    for pid in ended:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return ended


def _works_in(pid: int, root: str) -> bool:
    for link in ("root", "cwd", "exe"):
        with suppress(OSError):
            if f"{os.readlink(f'/proc/{pid}/{link}')}/".startswith(f"{root}/"):
                return pid != os.getpid()
    return False


def _unmount(place: Path) -> None:
    # What comes from outside the user namespace cannot be unmounted piece by piece (EINVAL,
    # mount_namespaces(7)), only all of a bind at once, and that is what "lazy" does. A tool that mounts and
    # unmounts by itself, as rinse does, may have taken it away already.
    if os.path.ismount(place):
        run(["umount", "--lazy", place], timeout_s=30)
