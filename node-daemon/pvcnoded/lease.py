"""Who runs a build: the lease on its row, and how to tell that the holder is dead."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pvccommon import builds
from pvccommon.database import Database
from pvccommon.errors import Busy, PvcError

FENCED_EXIT_CODE = 70
CANCEL_NOTICED_S = 1.0
KILL_TIMEOUT_S = 10


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
        return cls.of(os.getpid(), node)

    @classmethod
    def of(cls, pid: int, node: str = "") -> "Owner":
        """The process of this machine that has the id now."""
        return cls(node, boot_id(), pid, start_time(pid) or 0)

    def is_alive(self) -> bool:
        """Whether that very process runs on this machine; a reused pid does not count."""
        return self.boot == boot_id() and start_time(self.pid) == self.started

    def kill(self) -> None:
        """End that very process of this machine at once, and wait until it is gone. Raises Busy."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive():  # looked at after opening: so the descriptor is that process'
                signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(process)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while self.is_alive():
            if time.monotonic() > deadline:
                raise Busy(f"end process {self.pid}", f"it is still there {KILL_TIMEOUT_S} s after SIGKILL")
            time.sleep(0.02)


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
    """Renews a build's lease in a thread, and ends this process when the lease is lost; a context manager.

    The process ends at once, without undoing: somebody else owns the build then, and everything it holds
    (sandbox, mounts, devices) goes with it. When the lease runs out because the database does not answer, or
    the process was stopped meanwhile, the kernel ends it, before it could do anything more: by SIGALRM, which
    is not handled (setitimer(2)).
    """

    def __init__(
        self, database: Database, build_id: str, owner: Owner, lease: timedelta, taken: float
    ) -> None:
        """`taken`: a moment (time.monotonic) before the lease was taken."""
        self._database = database
        self._build_id = build_id
        self._owner = str(owner)
        self._lease = lease
        self._taken = taken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.on_lost: Callable[[], None] = lambda: os._exit(FENCED_EXIT_CODE)

    def __enter__(self) -> "LeaseKeeper":
        self._arm(self._taken)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _arm(self, renewed: float) -> None:
        """Live until the lease that was renewed after that moment runs out."""
        left_s = renewed + self._lease.total_seconds() - time.monotonic()
        if left_s <= 0:
            self.on_lost()
        signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.001))

    def _renew(self) -> bool:
        """Whether the lease is still ours. A cancel whose signal got lost is noticed here, too."""
        with self._database.session() as session:
            build = builds.renew_lease(session, self._build_id, self._owner, self._lease)
            cancelled = build is not None and build.cancel_requested
        if cancelled:
            os.kill(os.getpid(), signal.SIGTERM)
        return build is not None

    def _keep(self) -> None:
        while not self._stop.wait(min(self._lease.total_seconds() / 4, CANCEL_NOTICED_S)):
            before = time.monotonic()
            try:
                held = self._renew()
            except PvcError:
                continue  # the database does not answer: go on while the lease lasts
            if self._stop.is_set():
                return
            if not held:
                self.on_lost()
                return
            self._arm(before)
