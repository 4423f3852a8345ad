"""Slow commands leave the thread that received them, and answer later."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore

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


def take_over(slow: SlowCommands, task: Task, answer: Callable[[], Any]) -> None:
    with pytest.raises(Ignore):
        slow.take_over(task, "volume.flatten", answer)


def test_the_caller_s_thread_is_free_at_once_and_the_answer_comes_later() -> None:
    slow, task, go_on = SlowCommands(1), Task(), threading.Event()
    take_over(slow, task, lambda: go_on.wait(10) and {"result": {}})
    assert task.stored == []
    go_on.set()
    assert task.done.wait(10)
    assert task.stored == [("the-task", {"result": {}}, "SUCCESS")]


def test_what_has_waited_too_long_is_not_run() -> None:
    slow, late, after = SlowCommands(1), Task((datetime.now(UTC) - timedelta(seconds=1)).isoformat()), Task()
    ran: list[str] = []
    take_over(slow, late, lambda: ran.append("late"))
    take_over(slow, after, lambda: ran.append("after"))
    assert after.done.wait(10)
    assert ran == ["after"]
