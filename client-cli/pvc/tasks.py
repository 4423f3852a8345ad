"""Following a build: by server-sent events, and by polling where the server or the way to it has none.

`follow()` yields what happens and ends with the final state; it neither draws nor decides about exit codes.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pvc.client import ApiClient, Params
from pvc.errors import EXIT_CODES, CliError, Unreachable
from pvc.patience import Patience

Task = Mapping[str, Any]

POLL_S = 0.5
LOG_PAGE = 1000
# How long the API may be away (restart, network) before waiting is given up.
PATIENCE_S = 120.0
UNFINISHED = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class LogLine:
    """One line of a build's log. `level` is error, warning, info or debug."""

    seq: int
    time: str
    stage: str
    level: str
    message: str


@dataclass(frozen=True)
class StateChange:
    """The task as the API shows it now."""

    task: Task


@dataclass(frozen=True)
class ServerEvent:
    """One event of a stream: its name and its data, decoded."""

    name: str
    data: Any


Happening = LogLine | StateChange


def is_finished(task: Task) -> bool:
    """Any word but the two of an unfinished task ends the wait."""
    return task.get("state") not in UNFINISHED


def get_task(client: ApiClient, task_id: str) -> Task:
    """The task; the API answers 200 for unknown ids as well (FAILURE with an explanation)."""
    task = client.get("tasks", task_id)
    if not isinstance(task, dict) or "state" not in task:
        raise Unreachable("the API's answer about the task is not understood")
    return task


def check_success(task: Task, task_id: str) -> None:
    """Raise the build's own error unless it succeeded."""
    if task.get("state") == "SUCCESS":
        return
    found = task.get("error")
    error: Mapping[str, Any] = found if isinstance(found, dict) else {}
    vm, stage = task.get("vm"), error.get("stage") or task.get("stage")
    cancelled = task.get("build_state") == "cancelled"
    kind = "cancelled" if cancelled else str(error.get("kind") or "internal")
    why = ": ".join(str(error[key]) for key in ("what", "why") if error.get(key)) or str(
        task.get("status") or ""
    )
    if kind == "not-found" and not vm:
        raise CliError(
            why or f"there is no task {task_id}", hint="`pvc cluster task` lists builds", kind=kind
        )
    hints = [str(error["hint"])] if error.get("hint") else []
    kept = ", ".join(map(str, task.get("kept_volumes") or []))
    if kept:
        hints.append(f"kept volumes: {kept}; `pvc cluster task discard {task_id}` deletes them")
    raise CliError(
        (f"the build of {vm}" if vm else f"task {task_id}")
        + (" was cancelled" if cancelled else " failed")
        + (f" in stage {stage}" if stage else ""),
        why=why,
        hint="; ".join([*hints, f"`pvc cluster task log {task_id}` prints the full log"]),
        kind=kind if kind in EXIT_CODES else "internal",
    )


def follow(
    client: ApiClient, task_id: str, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Happening]:
    """What happens to the build, from its first log line to the final StateChange, always the last item."""
    after = -1
    progressed = True
    while progressed:
        progressed = False
        try:
            for happening in stream_events(client, task_id, max(after, 0)):
                yield happening
                if isinstance(happening, LogLine):
                    progressed = progressed or happening.seq > after
                    after = happening.seq
                elif is_finished(happening.task):
                    return
        except CliError:
            # No stream, or a broken one. Whatever is wrong, polling finds out and says so.
            pass
        if progressed:
            sleep(POLL_S)
    yield from poll_events(client, task_id, max(after, 0), sleep)


def stream_events(client: ApiClient, task_id: str, after: int) -> Iterator[Happening]:
    """Happenings from the event stream; returns when the server closes it."""
    query = {"follow": True, "after": after}
    with client.stream("tasks", task_id, "log", query=query) as lines:
        for event in parse_events(lines):
            if event.name == "log":
                yield log_line(event.data)
            elif isinstance(event.data, dict) and ends_or_changes(event):
                yield StateChange(event.data)


def ends_or_changes(event: ServerEvent) -> bool:
    """Whether to pass on a state. A final one counts as `end` only: lines may follow its `state`."""
    return event.name == "end" or (event.name == "state" and not is_finished(event.data))


def parse_events(lines: Iterator[bytes]) -> Iterator[ServerEvent]:
    """Events of a text/event-stream (WHATWG HTML, "Server-sent events"); data that is no JSON is skipped."""
    name, data = "message", list[str]()
    for raw in lines:
        line = raw.decode("utf-8", "replace")
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif not line:
            event = decoded_event(name, "\n".join(data))
            if event is not None:
                yield event
            name, data = "message", []


def decoded_event(name: str, data: str) -> ServerEvent | None:
    try:
        return ServerEvent(name, json.loads(data))
    except ValueError:
        return None


def poll_events(
    client: ApiClient, task_id: str, after: int, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Happening]:
    """Happenings found by asking again and again; bears an API that is away for a while."""
    last: Task | None = None
    patience = Patience(PATIENCE_S, partial(lost_sight, task_id))
    while True:
        try:
            # The task before the log: a final state seen first means that no line can be missed.
            task = get_task(client, task_id)
            lines = list(log_lines(client, task_id, after))
        except CliError as error:
            patience.bear(error)
        else:
            patience.renew()
            for line in lines:
                after = line.seq
                yield line
            if task != last:
                yield StateChange(task)
                last = task
            if is_finished(task):
                return
        sleep(POLL_S)


def lost_sight(task_id: str, error: CliError) -> CliError:
    """The error when the API has been away too long."""
    return CliError(
        f"lost sight of the build {task_id}, which goes on",
        why=str(error),
        hint=f"`pvc cluster task {task_id}` follows it again",
        kind=error.kind,
    )


def log_lines(client: ApiClient, task_id: str, after: int) -> Iterator[LogLine]:
    """The stored log after a sequence number, page by page; nothing on servers that keep none."""
    while True:
        page = log_page(client, task_id, {"after": after, "lines": LOG_PAGE})
        yield from page
        if len(page) < LOG_PAGE or page[-1].seq <= after:
            return
        after = page[-1].seq


def last_lines(client: ApiClient, task_id: str, lines: int) -> list[LogLine]:
    """The end of the stored log."""
    return log_page(client, task_id, {"lines": lines})[-lines:]


def log_page(client: ApiClient, task_id: str, query: Params) -> list[LogLine]:
    try:
        answer = client.get("tasks", task_id, "log", query=query)
    except CliError as error:
        if error.status == 404:
            return []
        raise
    events = answer.get("events") if isinstance(answer, dict) else None
    return [log_line(event) for event in events or [] if isinstance(event, dict)]


def log_line(event: Mapping[str, Any]) -> LogLine:
    return LogLine(
        seq=int(event.get("seq") or 0),
        time=str(event.get("time") or ""),
        stage=str(event.get("stage") or ""),
        level=str(event.get("level") or "info"),
        message=str(event.get("message") or ""),
    )
