"""Waiting for a PostgreSQL that is being restarted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pvccommon.database import Database, DatabaseSilent
from pvccommon.errors import NotFound


class Silent(Database):
    """Does not answer to the first `times` transactions; `late` ones break after the action."""

    def __init__(self, times: int, *, late: bool = False) -> None:
        self.left = times
        self.late = late

    @contextmanager
    def session(self) -> Iterator[Any]:
        self.left -= 1
        if self.left >= 0 and not self.late:
            raise DatabaseSilent("use the database", "no answer")
        yield self
        if self.left >= 0:
            raise DatabaseSilent("use the database", "the connection broke during the commit")


@pytest.mark.parametrize("late", [False, True])
def test_action_is_repeated_until_the_server_answers(late: bool) -> None:
    calls: list[object] = []

    def act(session: object) -> int:
        calls.append(session)
        return 42

    assert Silent(2, late=late).patiently(act) == 42
    assert len(calls) == (3 if late else 1)


def test_patience_ends() -> None:
    started = time.monotonic()
    with pytest.raises(DatabaseSilent):
        Silent(10**6).patiently(lambda _: None, patience_s=0.5)
    assert time.monotonic() - started < 5


def test_errors_of_the_action_are_not_repeated() -> None:
    calls = []

    def act(_: object) -> None:
        calls.append(1)
        raise NotFound("find task", "there is no such task")

    with pytest.raises(NotFound):
        Silent(0).patiently(act)
    assert calls == [1]
