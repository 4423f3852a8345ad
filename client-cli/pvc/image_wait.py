"""Waiting until an image is ready or has failed, with the percent shown."""

import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType

from pvc.client import ApiClient
from pvc.context import Context
from pvc.errors import EXIT_CODES, CliError
from pvc.output import Row, printable
from pvc.patience import Patience

PATH = ("provisioner", "image")
POLL_S = 1.0
LINE_EVERY_S = 5.0
# How long the API may be away (restart, network) before waiting is given up.
PATIENCE_S = 120.0
UNFINISHED = "importing"


class ImageGone(CliError):
    """The image that was waited for is not there any more."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the image {name!r} is gone", why="its import was ended", kind="not-found")


class ImageFailed(CliError):
    """The image could not be made, and says why."""


def image_or_none(client: ApiClient, name: str) -> Row | None:
    try:
        return client.get_one(*PATH, name)
    except CliError as error:
        if error.kind == "not-found":
            return None
        raise


def wait_for_image(context: Context, client: ApiClient, name: str) -> Row:
    """The image when it is ready. Raises its own error when it has failed, ImageGone when it disappears.

    Ctrl-C ends only the waiting.
    """
    patience = Patience(PATIENCE_S, partial(lost_sight, name))
    try:
        with percent_display(context, f"making the image {name}") as display:
            while True:
                try:
                    image = image_or_none(client, name)
                except CliError as error:
                    patience.bear(error)
                else:
                    patience.renew()
                    if image is None:
                        raise ImageGone(name)
                    if image.get("state") != UNFINISHED:
                        break
                    display.show(image.get("percent"))
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise CliError(
            f"stopped waiting, the image {name} is still being made",
            hint=f"`pvc provisioner image show {name}` shows how far it is, "
            f"`pvc provisioner image delete {name}` ends it",
            kind="interrupted",
        ) from None
    check_ready(image, name)
    return image


def lost_sight(name: str, error: CliError) -> CliError:
    return CliError(
        f"lost sight of the image {name}, which is still being made",
        why=str(error),
        hint=f"`pvc provisioner image show {name}` shows what became of it",
        kind=error.kind,
    )


def check_ready(image: Row, name: str) -> None:
    """Raise the image's own error unless it is ready."""
    if image.get("state") == "ready":
        return
    found = image.get("error")
    error = found if isinstance(found, dict) else {}
    kind = str(error.get("kind") or "internal")
    why = ": ".join(printable(str(error[key])) for key in ("what", "why") if error.get(key))
    own_hint = [printable(str(error["hint"]))] if error.get("hint") else []
    raise ImageFailed(
        f"the image {name} could not be made",
        why=why or f"its state is {printable(str(image.get('state')))}",
        hint="; ".join(
            [
                *own_hint,
                f"the next image of this name takes its place, or `pvc provisioner image delete {name}`",
            ]
        ),
        kind=kind if kind in EXIT_CODES else "internal",
    )


class Percent(AbstractContextManager["Percent"]):
    """Shows nothing: the display of `--quiet`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, percent: object) -> None:
        """`percent` may be missing."""


class PlainPercent(Percent):
    """For pipes and files: a line now and then."""

    def __init__(self, context: Context, title: str) -> None:
        self._context = context
        self._title = title
        self._last_line = time.monotonic()

    def show(self, percent: object) -> None:
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_S and isinstance(percent, (int, float)):
            self._last_line = now
            self._context.note(f"{self._title}: {percent:.0f} %")


class LivePercent(Percent):
    """For terminals: spinner, bar, percent, time."""

    def __init__(self, context: Context, title: str) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=context.console(stderr=True),
            transient=True,
        )
        self._line = self._progress.add_task(title, total=100)

    def __enter__(self) -> "LivePercent":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, percent: object) -> None:
        if isinstance(percent, (int, float)):
            self._progress.update(self._line, completed=percent)


def percent_display(context: Context, title: str) -> Percent:
    if context.quiet or context.silent:
        return Percent()
    return LivePercent(context, title) if sys.stderr.isatty() else PlainPercent(context, title)
