"""Devices and exports on this host that have outlived the process they were made for.

Both go with their process (loop.py, export.py), unless somebody else has got hold of them meanwhile: a loop
device that an operator has mounted, a daemon whose signal was lost.
"""

import errno
import fcntl
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pvccommon.errors import Busy, NotFound
from pvccommon.storage import export
from pvccommon.storage.faults import os_errors
from pvccommon.storage.image_users import ProcessIdentity
from pvccommon.storage.loop import clear, read_label
from pvccommon.storage.pool import Leftover

DAEMON = "qemu-storage-daemon"


def left_loops(pool: str, directory: Path | None) -> list[Leftover]:
    """Loop devices of a pool's volumes whose owners are dead. `directory`: where the pool has its files."""
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        device = f"/dev/{entry.parts[3]}"
        with suppress(OSError):  # it may go while we look at it
            backing = Path(entry.read_text().strip())
            label = _abandoned_label(device)
            ours = backing.name == "export.py" or (
                directory is not None and backing.is_relative_to(directory)
            )
            if ours and label is not None and label.startswith(f"{pool}/"):
                found.append(Leftover("mapping", device, f"{label} is a device of a process that has ended"))
    return found


def left_exports(is_ours: Callable[[dict[str, Any]], bool]) -> list[Leftover]:
    """Daemons that export volumes and whose owners are dead; `is_ours` takes QEMU's words for the image."""
    found = []
    for pid in _processes():
        image = _exported_image(pid)
        if image is not None and _owner_is_dead(pid) and is_ours(image):
            why = "it exports a volume for a process that has ended"
            found.append(Leftover("mapping", f"{DAEMON}/{pid}", why))
    return found


def release_mapping(name: str, what: str) -> None:
    """End a daemon, or free a loop device. Raises Busy naming who holds it."""
    if name.startswith(f"{DAEMON}/"):
        _end_daemon(int(name.rpartition("/")[2]), what)
        return
    with os_errors(what):
        clear(name)
    if os.path.exists(f"/sys/block/{os.path.basename(name)}/loop/backing_file"):
        pids = ", ".join(map(str, _holders(name))) or "a mount"
        raise Busy(what, f"it is still used by: {pids}", f"see: findmnt {name}; it goes with its last user")


def _abandoned_label(device: str) -> str | None:
    """What a loop device was made for, when its owner is gone: owners lock the device, see loop.py."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        label = read_label(fd)
    except BlockingIOError:
        return None
    finally:
        os.close(fd)
    # udev may have had the lock when an owner wanted it.
    return None if any(_is_python(pid) for pid in _holders(device)) else label


def _holders(device: str) -> list[int]:
    """Processes that have a device open."""
    number = os.stat(device).st_rdev
    return [pid for pid in _processes() if pid != os.getpid() and _has_open(pid, number)]


def _has_open(pid: int, number: int) -> bool:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found = os.stat(entry.path)
                if stat.S_ISBLK(found.st_mode) and found.st_rdev == number:
                    return True
    return False


def _is_python(pid: int) -> bool:
    with suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("python")
    return False


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _exported_image(pid: int) -> dict[str, Any] | None:
    """The image a daemon of ours exports, as export.py has described it; None for all other processes."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if os.path.basename(words[0]) != DAEMON or "--blockdev" not in words[:-1]:
        return None
    try:
        image = json.loads(words[words.index("--blockdev") + 1])
    except ValueError:
        return None
    return image if isinstance(image, dict) and image.get("node-name") == export.NODE else None


def _owner_is_dead(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    text = next((word for word in environment if word.startswith(f"{export.OWNER}=")), "")
    identity = ProcessIdentity.parse(text.partition("=")[2])
    return identity is not None and identity.is_dead


def _end_daemon(pid: int, what: str) -> None:
    """By a descriptor, so that the id cannot have become somebody else's between look and signal."""
    try:
        process = os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno == errno.ESRCH:
            return
        raise
    try:
        if _exported_image(pid) is None or not _owner_is_dead(pid):
            raise NotFound(what, "it is another process now")
        signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)
