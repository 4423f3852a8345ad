"""Shows how far an upload or download is, on stderr: a bar with rate and time left, or plain lines."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType

from pvc.context import Context
from pvc.output import size_text, time_text

LINE_EVERY_S = 5.0


class Transfer(AbstractContextManager["Transfer"]):
    """Knows how many of `total_bytes` have gone through, and shows nothing: the display of `--quiet`."""

    def __init__(self, context: Context, title: str, total_bytes: int) -> None:
        self.context = context
        self.title = title
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.found_bytes = 0
        self.began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes

    def begin_at(self, found_bytes: int) -> None:
        """The other end has this much already, which counts for no rate."""
        self.found_bytes = found_bytes
        self.began = time.monotonic()
        self.move_to(found_bytes)

    def move_to(self, done_bytes: int) -> None:
        """What went through is not what arrived: this much did."""
        self.done_bytes = done_bytes
        self.found_bytes = min(self.found_bytes, done_bytes)

    def wait(self, text: str) -> None:
        """All bytes are through; `text` says what is waited for now."""

    def remark(self, text: str) -> None:
        """Something that the operator should know meanwhile."""
        self.context.note(text)

    def progress(self) -> str:
        return progress_text(
            self.done_bytes, self.total_bytes, time.monotonic() - self.began, self.found_bytes
        )

    def end(self) -> str:
        return end_text(self.done_bytes - self.found_bytes, time.monotonic() - self.began)


class PlainTransfer(Transfer):
    """For pipes and files: a line now and then."""

    def __init__(self, context: Context, title: str, total_bytes: int) -> None:
        super().__init__(context, title, total_bytes)
        self._last_line = self.began

    def advance(self, size_bytes: int) -> None:
        super().advance(size_bytes)
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self.context.note(f"{self.title}: {self.progress()}")

    def wait(self, text: str) -> None:
        self.context.note(f"{self.title}: {self.end()}; {text}")


class LiveTransfer(Transfer):
    """For terminals: title, bar, bytes, rate, time left."""

    def __init__(self, context: Context, title: str, total_bytes: int) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        super().__init__(context, title, total_bytes)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=context.console(stderr=True),
            transient=True,
        )
        self._line = self._progress.add_task(title, total=total_bytes, rate="")

    def __enter__(self) -> "LiveTransfer":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, size_bytes: int) -> None:
        super().advance(size_bytes)
        speed = self._progress.tasks[0].speed
        rate = f"{size_text(speed)}/s" if speed else ""
        self._progress.update(self._line, completed=self.done_bytes, rate=rate)

    def wait(self, text: str) -> None:
        """The full bar stays, and says why it does."""
        self.remark(f"{self.title}: {self.end()}")
        self._progress.update(self._line, description=text, rate="")

    def move_to(self, done_bytes: int) -> None:
        super().move_to(done_bytes)
        # Otherwise the jump counts for the rate.
        self._progress.reset(self._line, completed=done_bytes, rate="")

    def remark(self, text: str) -> None:
        self._progress.console.print(text, style="dim")


def transfer_display(context: Context, title: str, total_bytes: int) -> Transfer:
    if context.quiet or context.silent:
        return Transfer(context, title, total_bytes)
    kind = LiveTransfer if sys.stderr.isatty() else PlainTransfer
    return kind(context, title, total_bytes)


def progress_text(done_bytes: int, total_bytes: int, seconds: float, found_bytes: int = 0) -> str:
    """`42 %, 2.1 GiB of 5 GiB, 120 MiB/s, 0:25 left`; the rate is that of what was not there already."""
    rate = (done_bytes - found_bytes) / seconds if seconds > 0 else 0.0
    left = f"{time_text((total_bytes - done_bytes) / rate)} left" if rate else "time left unknown"
    share = 100 * done_bytes // total_bytes if total_bytes else 100
    return f"{share} %, {size_text(done_bytes)} of {size_text(total_bytes)}, {size_text(rate)}/s, {left}"


def end_text(done_bytes: int, seconds: float) -> str:
    """`5 GiB in 12 s (426.7 MiB/s)`."""
    rate = f" ({size_text(done_bytes / seconds)}/s)" if seconds >= 0.05 else ""
    return f"{size_text(done_bytes)} in {time_text(seconds)}{rate}"
