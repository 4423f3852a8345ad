"""Shows a build while it runs, on stderr: a live line below the scrolling log, or plain lines."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from pvc.client import ApiClient
from pvc.context import Context
from pvc.errors import CliError
from pvc.output import Column, Table, print_table, printable, time_text
from pvc.stage_order import Shown, StageEnd, StageOrder, stages_of
from pvc.tasks import Happening, LogLine, StateChange, Task, follow

LEVEL_STYLES = {"error": "red", "warning": "yellow", "debug": "dim"}

STAGES = Table(
    columns=(
        Column("stage", "stage"),
        Column("time", lambda row: time_text(row.get("seconds")), number=True),
    ),
    empty="",
    name="stage",
)


class Display(AbstractContextManager["Display"], Protocol):
    """Where happenings go."""

    def show(self, happening: Happening) -> None: ...


def watch(context: Context, client: ApiClient, task_id: str, *, log: bool = True) -> Task:
    """Follow a build to its end and return the final task. Ctrl-C says that the build goes on."""
    task: Task = {}
    try:
        with display_for(context, log=log) as display:
            for happening in follow(client, task_id):
                display.show(happening)
                if isinstance(happening, StateChange):
                    task = happening.task
    except KeyboardInterrupt:
        raise CliError(
            f"stopped waiting, the build {task_id} goes on",
            hint=f"`pvc cluster task {task_id}` follows it, `pvc cluster task cancel {task_id}` ends it",
            kind="interrupted",
        ) from None
    show_times(context, task)
    return task


def display_for(context: Context, *, log: bool) -> Display:
    if context.quiet or context.silent:
        return Nothing()
    return LiveDisplay(context, log=log) if sys.stderr.isatty() else PlainDisplay(context, log=log)


def show_times(context: Context, task: Task) -> None:
    stages = stages_of(task)
    if stages and not (context.quiet or context.silent):
        print_table(context, STAGES, stages, stderr=True)


def log_text(line: LogLine) -> str:
    level = f"{line.level}: " if line.level in ("error", "warning") else ""
    return f"[{line.stage or '-'}] {level}{printable(line.message)}"


def end_text(end: StageEnd) -> str:
    return f"[{end.stage}] {'failed after' if end.failed else 'took'} {time_text(end.seconds)}"


def percent_of(task: Task) -> float | None:
    """How far the whole build is: steps done, and the share of the present one, which `percent` tells."""
    total, current, percent = task.get("total"), task.get("current"), task.get("percent")
    share = percent / 100 if isinstance(percent, (int, float)) else 0.0
    if isinstance(total, int) and isinstance(current, int) and total > 1:
        return min(100.0, 100 * (current + share) / total)
    return None


def stage_of(task: Task) -> str:
    """What the build does now, in a word: its stage, or its state while it is in none."""
    state = str(task.get("build_state") or task.get("state") or "").lower()
    if state in ("undoing", "queued", "pending"):
        return state
    return str(task.get("stage") or state)


def status_of(task: Task) -> str:
    """The first line of the task's own words."""
    return printable(str(task.get("status") or "")).partition("\n")[0]


class Nothing:
    """The display of `--quiet`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, happening: Happening) -> None:
        """Drop it."""


class PlainDisplay(Nothing):
    """For pipes and files: every log line, what the build does, and the time taken when a stage ends."""

    def __init__(self, context: Context, *, log: bool) -> None:
        self._context = context
        self._log = log
        self._order = StageOrder()
        self._status = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show_all(self._order.rest())

    def show(self, happening: Happening) -> None:
        if self._log or isinstance(happening, StateChange):
            self._show_all(self._order.take(happening))
        if isinstance(happening, StateChange):
            self._show_status(happening.task)

    def _show_all(self, shown: Iterable[Shown]) -> None:
        for one in shown:
            self._context.note(log_text(one) if isinstance(one, LogLine) else end_text(one))

    def _show_status(self, task: Task) -> None:
        status = status_of(task)
        if status and status != self._status and task.get("state") == "RUNNING":
            self._context.note(f"[{stage_of(task) or '-'}] {status}")
            self._status = status


class LiveDisplay(Nothing):
    """For terminals: spinner, stage, time in the stage, bar, percent, total time, status."""

    def __init__(self, context: Context, *, log: bool) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._log = log
        self._order = StageOrder()
        self._stage = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]}", style="bold"),
            TimeElapsedColumn(),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False, style="dim"),
            console=context.console(stderr=True),
            transient=True,
        )
        self._line = self._progress.add_task("", total=100, stage="waiting")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show_all(self._order.rest())
        self._progress.stop()

    def show(self, happening: Happening) -> None:
        if self._log or isinstance(happening, StateChange):
            self._show_all(self._order.take(happening))
        if isinstance(happening, StateChange):
            self._show_state(happening.task)

    def _show_all(self, shown: Iterable[Shown]) -> None:
        for one in shown:
            if isinstance(one, LogLine):
                self._print(log_text(one), LEVEL_STYLES.get(one.level, ""))
            else:
                mark, style = ("✗", "red") if one.failed else ("✓", "green")
                self._print(f"{mark} {one.stage} {time_text(one.seconds)}", style)

    def _show_state(self, task: Task) -> None:
        stage = stage_of(task)
        if stage != self._stage:
            self._stage = stage
            # The elapsed column shows the time in the stage.
            self._progress.reset(self._line)
        self._progress.update(
            self._line, stage=stage, completed=percent_of(task) or 0, description=status_of(task)
        )

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(text, style=style))
