"""The log of a build: stored lines, or a live stream of server-sent events.

    event: log     id: <seq>   data: {seq, time, stage, level, message}
    event: state               data: the task, whenever it has changed
    event: end                 data: the task in its final state; then the stream ends
    event: error               data: an error; the stream ends, asking again with Last-Event-ID goes on

The HTML standard, "Server-sent events", has the format.
"""

import functools
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request
from marshmallow import Schema, fields
from sqlalchemy import desc, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pvcapid.auth import caller
from pvcapid.endpoint import endpoint
from pvcapid.fields import Flag, Whole, documented
from pvcapid.parameters import Given
from pvcapid.services import Services, reading, services
from pvcapid.tasks import TaskElement, find_task, shown_task
from pvccommon.errors import EnvironmentFault, PvcError
from pvccommon.models import FINAL_STATES, BuildEvent

log = logging.getLogger(__name__)
blueprint = Blueprint("task_log", __name__)
POLL_S = 0.3
KEEP_ALIVE_S = 10.0
PATIENCE_S = 20.0  # how long a database that does not answer is waited for
BATCH = 500
MAX_SEQ = 2**31 - 1


class LogFilter(Schema):
    after = Whole(0, MAX_SEQ, metadata=documented("only lines after this seq"))
    lines = Whole(
        1, 100_000, metadata=documented("how many: the first ones after `after`, else the last ones")
    )
    follow = Flag(
        load_default=False, metadata=documented("answer with server-sent events until the build has ended")
    )


class EventElement(Schema):
    seq = fields.Integer()
    time = fields.Function(
        lambda event: event.time.isoformat(), metadata=documented("ISO 8601", type="string")
    )
    stage = fields.String()
    level = fields.String(metadata=documented("debug, info, warning or error"))
    message = fields.String()


class LogAnswer(Schema):
    id = fields.String()
    state = fields.String()
    build_state = fields.String()
    events = fields.List(fields.Nested(EventElement))


@blueprint.get("/tasks/<task_id>/log")
@endpoint(LogFilter, LogAnswer)
def get_task_log(given: Given, task_id: str) -> Any:
    """Show or follow the log of a build."""
    with reading() as session:
        build = find_task(session, task_id)
        if not given["follow"]:
            task = shown_task(session, build)
            events = _read(session, task_id, given.get("after"), given.get("lines", BATCH * 4))
            return {
                "id": task_id,
                "state": task["state"],
                "build_state": task["build_state"],
                "events": events,
            }
    return _stream(task_id, _start(given))


def _stream(task_id: str, after: int) -> Response:
    """Raises Busy when too many follow already; a client then asks for stored lines instead."""
    outside, who = services(), caller()
    name = who.name if who else ""
    outside.long_requests.follow(name)
    stream = follow(outside, task_id, after)
    answer = Response(stream, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
    answer.call_on_close(functools.partial(outside.long_requests.end_follow, name))
    return answer


def follow(outside: Services, task_id: str, after: int) -> Iterator[str]:
    """The stream. A database that does not answer for a while only makes it wait."""
    follower = Follower(outside, task_id, after)
    answered = time.monotonic()
    yield "retry: 1000\n\n"
    while not outside.stopping():
        try:
            yield from follower.look()
            answered = time.monotonic()
        except (EnvironmentFault, SQLAlchemyError) as exc:
            if time.monotonic() - answered > PATIENCE_S:
                log.error("following task %s ends: %s", task_id, exc)
                yield _error_event(EnvironmentFault(f"follow task {task_id}", "the database does not answer"))
                return
            yield ": waiting for the database\n\n"
        except PvcError as exc:
            yield _error_event(exc)
            return
        if follower.ended:
            return
        if not follower.behind:
            time.sleep(POLL_S)
    yield _error_event(EnvironmentFault(f"follow task {task_id}", "the API daemon is stopping", "ask again"))


class Follower:
    """What one reader has been told so far."""

    def __init__(self, outside: Services, task_id: str, after: int) -> None:
        self._outside = outside
        self._task_id = task_id
        self._after = after
        self._shown: dict[str, Any] = {}
        self._spoken = time.monotonic()
        self.behind = False
        self.ended = False

    def look(self) -> Iterator[str]:
        """What is new. The state is read before the lines, so that `end` comes after all of them."""
        with self._outside.database.session() as session:
            build = find_task(session, self._task_id)
            task = TaskElement().dump(shown_task(session, build))
            events = _read(session, self._task_id, self._after, BATCH)
        self.behind = len(events) == BATCH
        for event in events:
            yield self._say("log", EventElement().dump(event), event.seq)
            self._after = event.seq
        if task != self._shown:
            yield self._say("state", task)
            self._shown = task
        if task["build_state"] in FINAL_STATES and not self.behind:
            self.ended = True
            yield self._say("end", task)
        elif time.monotonic() - self._spoken > KEEP_ALIVE_S:
            self._spoken = time.monotonic()
            yield ": still here\n\n"

    def _say(self, kind: str, data: dict[str, Any], number: int | None = None) -> str:
        self._spoken = time.monotonic()
        return _event(kind, data, number)


def _read(session: Session, task_id: str, after: int | None, lines: int) -> list[Any]:
    """The first `lines` events after a number, or the last `lines` of all when there is none."""
    statement = select(BuildEvent).where(BuildEvent.build == task_id)
    if after is not None:
        statement = statement.where(BuildEvent.seq > after).order_by(BuildEvent.seq).limit(lines)
        return list(session.execute(statement).scalars())
    last = session.execute(statement.order_by(desc(BuildEvent.seq)).limit(lines)).scalars().all()
    return list(reversed(last))


def _start(given: Given) -> int:
    """Where to begin: a browser or client that connects again says in a header what it has."""
    header = request.headers.get("Last-Event-ID", "")
    seen = int(header) if header.isascii() and header.isdigit() and len(header) < 10 else 0
    after: int = given.get("after") or 0
    return max(seen, after)


def _event(kind: str, data: dict[str, Any], number: int | None = None) -> str:
    identity = f"id: {number}\n" if number is not None else ""
    return f"event: {kind}\n{identity}data: {json.dumps(data)}\n\n"


def _error_event(error: PvcError) -> str:
    return _event("error", error.to_dict())
