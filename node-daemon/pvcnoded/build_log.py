"""A build's log: lines in order, into `build_event` rows and the row's progress."""

import logging
import time
from dataclasses import dataclass, field

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from pvccommon.builds import find_build, find_held
from pvccommon.database import Database
from pvccommon.declarations import REDACTED
from pvccommon.errors import PvcError
from pvccommon.models import BuildEvent, now

MAX_LINE_CHARS = 4096
# What a line costs beyond its text: a row. Without it, empty lines would be free.
LINE_OVERHEAD_BYTES = 128
FLUSH_AFTER_S = 0.2
FLUSH_AFTER_LINES = 500
PROGRESS_EVERY_S = 0.5
# sd-daemon(3): a line may begin with <N>, N a syslog priority.
PRIORITIES = {
    **dict.fromkeys(("<0>", "<1>", "<2>", "<3>"), "error"),
    "<4>": "warning",
    "<5>": "info",
    "<6>": "info",
    "<7>": "debug",
}
logger = logging.getLogger("pvc.build")


@dataclass
class BuildLog:
    """The log of one build. Lines are written in batches; those that PostgreSQL does not take are kept and
    tried again, so that a restart of the server loses nothing. With `owner`, only while that one holds the
    build's lease."""

    database: Database
    build_id: str
    limit_bytes: int
    stage: str = "start"
    secrets: tuple[str, ...] = ()
    owner: str | None = None
    _pending: list[dict[str, object]] = field(default_factory=list)
    _seq: int | None = None
    _bytes: int = 0
    is_cut: bool = False
    _flushed: float = 0.0
    _progress: tuple[str, float | None] | None = None
    _progress_written: float = 0.0

    def info(self, message: str) -> None:
        self._add("info", message)

    def warning(self, message: str) -> None:
        self._add("warning", message)

    def error(self, message: str) -> None:
        self._add("error", message)

    def output(self, line: str) -> None:
        """A line the sandbox printed; beyond the limit the rest is dropped, with one note."""
        level = PRIORITIES.get(line[:3])
        text = line[3:] if level else line
        self._bytes += len(line) + LINE_OVERHEAD_BYTES
        if self._bytes <= self.limit_bytes:
            self._add(level or "info", text)
        elif not self.is_cut:
            self.is_cut = True
            self._add(
                "warning", f"the script has written {self.limit_bytes} bytes; the rest of its log is cut here"
            )

    def progress(self, message: str, percent: float | None) -> None:
        """What the script is doing, for the task's status; written at most twice a second."""
        self._progress = (clean(self.mask(message)), percent)

    def tick(self) -> None:
        """Write what has been waiting long enough."""
        waited = time.monotonic() - self._flushed
        if self._pending and (waited > FLUSH_AFTER_S or len(self._pending) > FLUSH_AFTER_LINES):
            self.flush()
        if self._progress and time.monotonic() - self._progress_written > PROGRESS_EVERY_S:
            self._write_progress()

    def flush(self, patience_s: float = 0.0) -> None:
        """Write everything now; lines stay pending when the database does not answer for so long."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        try:
            self._seq = self.database.patiently(self._write, patience_s)
        except PvcError as exc:
            # Somebody else may write before this is tried again: the sweeper, that it undoes the build.
            self._seq = None
            logger.warning("build %s: log not written, trying again: %s", self.build_id, exc)
            return
        self._pending.clear()

    def _write(self, session: Session) -> int:
        """Insert the pending lines; the number of the last."""
        if self.owner is not None:
            find_held(session, self.build_id, self.owner)
        seq = self._seq
        if seq is None:
            last = select(func.max(BuildEvent.seq)).where(BuildEvent.build == self.build_id)
            seq = session.execute(last).scalar() or 0
        rows = [{**row, "seq": seq + n} for n, row in enumerate(self._pending, 1)]
        session.execute(insert(BuildEvent), rows)
        return seq + len(rows)

    def mask(self, text: str) -> str:
        """The text without the values of secret arguments, as far as they stand in it as they are."""
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        return text

    def _add(self, level: str, message: str) -> None:
        for line in self.mask(message).split("\n"):
            event = {
                "build": self.build_id,
                "time": now(),
                "stage": self.stage,
                "level": level,
                "message": clean(line),
            }
            self._pending.append(event)
        if len(self._pending) > FLUSH_AFTER_LINES:
            self.tick()

    def _write_progress(self) -> None:
        self._progress_written = time.monotonic()
        message, percent = self._progress or ("", None)
        self._progress = None
        try:
            with self.database.session() as session:
                build = find_build(session, self.build_id)
                if self.owner not in (None, build.lease_owner):
                    return
                build.status, build.percent = message, percent
        except PvcError as exc:
            logger.warning("build %s: progress not written: %s", self.build_id, exc)


def clean(text: str) -> str:
    """Text that PostgreSQL takes and terminals survive: no control characters, at most 4,096 characters."""
    shown = "".join(
        c if c.isprintable() or c == "\t" else "\ufffd" for c in text.rstrip("\r\n")[: MAX_LINE_CHARS + 1]
    )
    return shown[:MAX_LINE_CHARS] + " … (line cut)" if len(shown) > MAX_LINE_CHARS else shown
