"""Slow commands leave the thread that received them, and answer later."""

import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from pvcnoded.slow_commands import SlowCommands


class Task:
    """As much of a bound Celery task as is used."""

    def __init__(self, expires: str | None = None) -> None:
        self.request = SimpleNamespace(id="the-task", expires=expires)
        self.backend = self
        self.stored: list[tuple[Any, ...]] = []
        self.done = threading.Event()

    def store_result(self, *words: Any) -> None:
        self.stored.append(words)
        self.done.set()


def test_the_caller_s_thread_is_free_at_once_and_the_answer_comes_later() -> None:
    slow, task, go_on = SlowCommands(1), Task(), threading.Event()
    slow.take_over(task, "volume.flatten", lambda: go_on.wait(10) and {"result": {}})
    assert task.stored == []
    go_on.set()
    assert task.done.wait(10)
    assert task.stored == [("the-task", {"result": {}}, "SUCCESS")]


def test_what_has_waited_too_long_is_not_run() -> None:
    slow, late, after = SlowCommands(1), Task((datetime.now(UTC) - timedelta(seconds=1)).isoformat()), Task()
    ran: list[str] = []
    slow.take_over(late, "volume.flatten", lambda: ran.append("late"))
    slow.take_over(after, "volume.flatten", lambda: ran.append("after"))
    assert after.done.wait(10)
    assert ran == ["after"]
