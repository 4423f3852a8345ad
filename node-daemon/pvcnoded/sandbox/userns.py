"""User namespaces for builds, and which range of user ids each build may use.

The namespace is made by a short-lived holder process and then lives by its descriptor alone.
"""

import contextlib
import fcntl
import os
import resource
import signal
from collections.abc import Iterator

from pvcnoded.sandbox import mounts
from pvcnoded.sandbox.policy import ID_COUNT

MAX_SLOTS = 256


def create_user_namespace(first_uid: int, processes: int) -> int:
    """Return a descriptor of a new user namespace that maps 0…65535 to the ids from `first_uid`.

    At most `processes` processes can run in it, and no user namespace can be made in it. Needs root and a
    single-threaded caller (it forks). Undone by closing the descriptor once no process is inside.
    """
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(from_child)
        os.close(to_child)
        _hold(first_uid, processes, to_parent, from_parent)
    os.close(to_parent)
    os.close(from_parent)
    try:
        _expect(from_child)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w") as table:
                table.write(f"0 {first_uid} {ID_COUNT}\n")
        os.write(to_child, b"m")
        _expect(from_child)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(from_child)
        os.close(to_child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _hold(first_uid: int, processes: int, to_parent: int, from_parent: int) -> None:
    """The holder: become the range's first id, make the namespace, wait to be ended. Never returns.

    A parent that dies closes its end of the pipe, which ends the wait.
    """
    try:
        # The limit in force when the namespace is made binds all its processes together (Linux 5.14).
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
        drop_to(first_uid)
        # Changing ids made the process undumpable, and its /proc files root's: no maps could be written.
        mounts.prctl(mounts.PR_SET_DUMPABLE, 1)
        mounts.unshare(mounts.CLONE_NEWUSER)
        os.write(to_parent, b"u")
        if os.read(from_parent, 1):
            _forbid_nesting()
            os.write(to_parent, b"d")
            os.read(from_parent, 1)
    except OSError as exc:
        os.write(to_parent, f"!{exc}".encode())
    finally:
        os._exit(1)


def _forbid_nesting() -> None:
    with open("/proc/sys/user/max_user_namespaces", "w") as limit:
        limit.write("0\n")


def drop_to(uid: int) -> None:
    """Give up root for good: the calling process has this user and group id and no other."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _expect(fd: int) -> None:
    answer = os.read(fd, 4096)
    if not answer or answer.startswith(b"!"):
        reason = answer[1:].decode(errors="replace") or "the holder process ended"
        raise OSError(f"create user namespace: {reason}")


@contextlib.contextmanager
def uid_slot(directory: str) -> Iterator[int]:
    """Hold the lowest free slot number; the range of a build starts at first_uid + slot * 65536.

    Slots are files locked with flock(2) in `directory` (made if missing), so a killed process frees its own.
    Everything on a host that uses the same ranges must use the same directory. Raises Busy if all are taken.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for slot in range(MAX_SLOTS):
        fd = os.open(os.path.join(directory, f"slot{slot}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        try:
            yield slot
        finally:
            os.close(fd)
        return
    from pvccommon.errors import Busy  # only the worker has it, the keeper does not

    raise Busy("take a user id range", f"all {MAX_SLOTS} slots in {directory} are in use")


def range_start(first_uid: int, slot: int) -> int:
    """First id of a slot's range."""
    return first_uid + slot * ID_COUNT
