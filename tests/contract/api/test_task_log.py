"""The log of a build: stored, and followed live."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from flask import Flask

from pvcapid import task_log
from pvcapid.long_requests import LongRequests
from pvccommon import builds
from pvccommon.database import Database
from pvccommon.errors import EnvironmentFault
from pvccommon.models import Build, BuildEvent, BuildState


@pytest.fixture
def task(database: Database, empty: None) -> str:
    """A build that runs, with five lines."""
    with database.session() as session:
        build = Build(
            vm="web1", profile="p", node="hv1", memory_mib=1, plan={}, state=BuildState.RUNNING.value
        )
        session.add(build)
        session.flush()
        task: str = build.id
    write(database, task, range(1, 6))
    return task


def write(database: Database, task: str, numbers: range) -> None:
    with database.session() as session:
        for number in numbers:
            message = f"line {number}: ä\r\nevent: end\u2028"
            session.add(BuildEvent(build=task, seq=number, stage="install", level="info", message=message))


def finish(database: Database, task: str) -> None:
    with database.session() as session:
        builds.finish_build(session.get(Build, task), BuildState.SUCCEEDED)


def numbers(answer: Any) -> list[int]:
    return [event["seq"] for event in answer["events"]]


def parse(chunks: Iterator[bytes]) -> Iterator[tuple[str, Any, str | None]]:
    """(event, data, id) as the HTML standard reads them; comments as ("", text, None)."""
    text = ""
    for chunk in chunks:
        text += chunk.decode()
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            fields = dict(
                line.split(": ", 1) if not line.startswith(":") else ("", line) for line in block.split("\n")
            )
            if "retry" not in fields:
                yield fields.get("event", ""), json.loads(fields.get("data", "null")), fields.get("id")


def stream(api: Any, task: str, query: dict[str, Any] | None = None, **headers: str) -> Any:
    answer = api.get(
        f"/tasks/{task}/log", {"follow": "true", **(query or {})}, headers=headers, buffered=False
    )
    assert answer.status_code == 200
    assert answer.mimetype == "text/event-stream"
    return closing_parse(answer)


def closing_parse(answer: Any) -> Iterator[tuple[str, Any, str | None]]:
    with closing(answer):
        yield from parse(iter(answer.response))


@pytest.fixture(autouse=True)
def free_places(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that do not read a stream to its end do not take places from others."""
    outside = app.extensions["pvc"]
    monkeypatch.setattr(outside, "long_requests", LongRequests(outside.config.api.threads))


def test_stored_lines(api: Any, task: str, expect: Any) -> None:
    answer = expect(api.get(f"/tasks/{task}/log"), 200)
    assert (answer["id"], answer["state"], answer["build_state"]) == (task, "RUNNING", "running")
    assert set(answer["events"][0]) == {"seq", "time", "stage", "level", "message"}
    assert numbers(answer) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"after": 2}, [3, 4, 5]),
        ({"after": 2, "lines": 2}, [3, 4]),
        ({"lines": 2}, [4, 5]),
        ({"after": 0, "lines": 2}, [1, 2]),
        ({"after": 99}, []),
    ],
)
def test_parts_of_the_log(api: Any, task: str, expect: Any, query: dict[str, int], found: list[int]) -> None:
    assert numbers(expect(api.get(f"/tasks/{task}/log", query), 200)) == found


@pytest.mark.parametrize(
    "query", [{"after": -1}, {"lines": 0}, {"follow": "maybe"}, {"after": 2**40}, {"x": 1}]
)
def test_odd_parameters(api: Any, task: str, expect: Any, query: dict[str, Any]) -> None:
    expect(api.get(f"/tasks/{task}/log", query), 400)


def test_following_ends_after_the_last_line(
    api: Any, database: Database, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_log, "POLL_S", 0.01)
    events = stream(api, task)
    first = list(itertools.islice(events, 6))
    assert [(kind, identity) for kind, _, identity in first] == [
        *(("log", str(number)) for number in range(1, 6)),
        ("state", None),
    ]
    assert first[0][1]["message"] == "line 1: ä\r\nevent: end\u2028"
    assert first[5][1]["build_state"] == "running"
    write(database, task, range(6, 8))
    with database.session() as session:
        session.get(Build, task).stage = "cleanup"
    more = list(itertools.islice(events, 3))
    assert [identity for _, _, identity in more] == ["6", "7", None]
    assert more[2][1]["stage"] == "cleanup"
    write(database, task, range(8, 9))
    finish(database, task)
    rest = list(events)
    assert [kind for kind, _, _ in rest] == ["log", "state", "end"]
    assert rest[-1][1]["state"] == "SUCCESS"


def test_following_a_long_log_that_has_ended(
    api: Any, database: Database, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_log, "BATCH", 10)
    write(database, task, range(6, 101))
    finish(database, task)
    events = list(stream(api, task))
    assert [int(identity) for _, _, identity in events if identity] == list(range(1, 101))
    assert events[-1][0] == "end"
    assert [kind for kind, _, _ in events].count("end") == 1


def test_following_goes_on_where_the_caller_was(api: Any, database: Database, task: str) -> None:
    finish(database, task)
    for query, headers, found in (
        ({"after": 3}, {}, ["4", "5"]),
        ({}, {"Last-Event-ID": "4"}, ["5"]),
        ({"after": 3}, {"Last-Event-ID": "4"}, ["5"]),
        ({"after": 4}, {"Last-Event-ID": "nonsense"}, ["5"]),
        ({"after": 4}, {"Last-Event-ID": "²"}, ["5"]),
    ):
        events = stream(api, task, query, **headers)
        assert [identity for _, _, identity in events if identity] == found


def test_a_silent_build_is_kept_alive(api: Any, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_log, "POLL_S", 0.01)
    monkeypatch.setattr(task_log, "KEEP_ALIVE_S", 0.05)
    events = stream(api, task, {"after": 5})
    assert [kind for kind, _, _ in itertools.islice(events, 3)] == ["state", "", ""]


class Away:
    """A database that does not answer for a while."""

    def __init__(self, database: Database, times: int) -> None:
        self.database = database
        self.times = times

    def session(self) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise EnvironmentFault("use the database", "connection refused")
        return self.database.session()


def test_a_database_that_comes_back_is_waited_for(
    app: Flask, database: Database, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_log, "POLL_S", 0.01)
    finish(database, task)
    outside = app.extensions["pvc"]
    monkeypatch.setattr(outside, "database", Away(database, 3))
    text = "".join(task_log.follow(outside, task, 0))
    assert text.count(": waiting for the database") == 3
    assert "event: end" in text
    assert "event: error" not in text


def test_a_database_that_stays_away_is_told(
    app: Flask, database: Database, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_log, "POLL_S", 0.01)
    monkeypatch.setattr(task_log, "PATIENCE_S", 0.05)
    outside = app.extensions["pvc"]
    monkeypatch.setattr(outside, "database", Away(database, 10_000))
    text = "".join(task_log.follow(outside, task, 0))
    assert "event: error" in text
    assert "event: end" not in text


def test_a_server_that_stops_ends_its_streams(app: Flask, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = app.extensions["pvc"]
    monkeypatch.setattr(outside, "stopping", iter([False, True]).__next__)
    text = "".join(task_log.follow(outside, task, 0))
    assert text.count("event: log") == 5
    assert "event: error" in text


def test_followers_leave_threads_to_others(
    caller: Callable[[str], Any], app: Flask, task: str, expect: Any
) -> None:
    app.extensions["pvc"].long_requests = LongRequests(8)
    query, path = {"follow": "true"}, f"/tasks/{task}/log"
    viewer, operator, admin = caller("viewer"), caller("operator"), caller("admin")
    streams = [someone.get(path, query, buffered=False) for someone in (viewer, viewer, operator, operator)]
    assert [stream.status_code for stream in streams] == [200] * 4
    for someone in (viewer, operator, admin):
        assert expect(someone.get(path, query), 503)["kind"] == "busy-retry"
        expect(someone.get(path), 200)
    streams.pop().close()
    streams.pop().close()
    assert expect(viewer.get(path, query), 503)["kind"] == "busy-retry"
    streams.append(admin.get(path, query, buffered=False))
    assert streams[-1].status_code == 200
    for stream in streams:
        stream.close()
    with closing(viewer.get(path, query, buffered=False)) as again:
        assert again.status_code == 200


def test_who_asks_for_an_unknown_task_takes_no_place(
    api: Any, app: Flask, database: Database, expect: Any
) -> None:
    app.extensions["pvc"].long_requests = LongRequests(1)
    for _ in range(3):
        expect(api.get("/tasks/none/log", {"follow": "true"}), 404)
