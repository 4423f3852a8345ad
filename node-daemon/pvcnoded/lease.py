"""Who runs a build: the lease on its row, and how to tell that the holder is dead."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pvccommon import builds
from pvccommon.database import Database
from pvccommon.errors import PvcError
from pvccommon.models import now

FENCED_EXIT_CODE = 70
CANCEL_NOTICED_S = 1.0


@dataclass(frozen=True)
class Owner:
    """A process of a node, beyond doubt: its pid and start time (clock ticks after boot), and the boot."""

    node: str
    boot: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.node}/{self.boot}/{self.pid}/{self.started}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        node, boot, pid, started = text.split("/")
        return cls(node, boot, int(pid), int(started))

    @classmethod
    def myself(cls, node: str) -> "Owner":
        return cls(node, boot_id(), os.getpid(), start_time(os.getpid()) or 0)

    def is_alive(self) -> bool:
        """Whether that very process runs on this machine; a reused pid does not count."""
        return self.boot == boot_id() and start_time(self.pid) == self.started


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None when there is no such process, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


class LeaseKeeper:
    """Renews a build's lease in a thread; a context manager.

    When the lease is lost the process ends at once, without undoing: somebody else owns the build now, and
    everything this process holds (sandbox, mounts, devices) goes with it.
    """

    def __init__(self, database: Database, build_id: str, owner: Owner, lease: timedelta) -> None:
        self._database = database
        self._build_id = build_id
        self._owner = str(owner)
        self._lease = lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.on_lost: Callable[[], None] = lambda: os._exit(FENCED_EXIT_CODE)

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _renew(self) -> bool:
        """Whether the lease is still ours. A cancel whose signal got lost is noticed here, too."""
        with self._database.session() as session:
            build = builds.renew_lease(session, self._build_id, self._owner, self._lease)
            cancelled = build is not None and build.cancel_requested
        if cancelled:
            os.kill(os.getpid(), signal.SIGTERM)
        return build is not None

    def _keep(self) -> None:
        valid_until = now() + self._lease
        while not self._stop.wait(min(self._lease.total_seconds() / 4, CANCEL_NOTICED_S)):
            try:
                held = self._renew()
                valid_until = now() + self._lease
            except PvcError:  # the database does not answer: go on while the lease lasts
                held = now() < valid_until
            if not held and not self._stop.is_set():
                self.on_lost()
                return
