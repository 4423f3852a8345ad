"""Lines of a build's log: levels, cutting, cleaning."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pvccommon.database import Database, DatabaseSilent
from pvcnoded.build_log import LINE_OVERHEAD_BYTES, BuildLog, clean


class Recorder(Database):
    """A database that takes inserted rows, or is down."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.down = False

    @contextmanager
    def session(self) -> Iterator[Any]:
        if self.down:
            raise DatabaseSilent("use the database", "down")
        yield self

    def execute(self, _statement: object, rows: list[dict[str, Any]] | None = None) -> "Recorder":
        self.rows.extend(rows or [])
        return self

    def scalar(self) -> int:
        return 7


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def log(recorder: Recorder) -> BuildLog:
    limit = 10 * (9 + LINE_OVERHEAD_BYTES)
    return BuildLog(recorder, "b1", limit_bytes=limit, stage="install", secrets=("hunter2",))


def test_levels_are_read_from_the_prefix(log: BuildLog, recorder: Recorder) -> None:
    for line in ("<3>bad", "<4>odd", "<6>fine", "<7>detail", "plain", "<9>not a level"):
        log.output(line)
    log.flush()
    assert [(row["level"], row["message"]) for row in recorder.rows] == [
        ("error", "bad"), ("warning", "odd"), ("info", "fine"), ("debug", "detail"), ("info", "plain"),
        ("info", "<9>not a level"),
    ]  # fmt: skip
    assert [row["seq"] for row in recorder.rows] == [8, 9, 10, 11, 12, 13]
    assert {row["stage"] for row in recorder.rows} == {"install"}


def test_flood_is_cut_once_with_a_note(log: BuildLog, recorder: Recorder) -> None:
    for _ in range(50):
        log.output("x" * 9)
    log.info("from the worker itself")
    log.flush()
    messages = [row["message"] for row in recorder.rows]
    assert messages[:10] == ["x" * 9] * 10
    assert "the rest of its log is cut here" in messages[10]
    assert messages[11:] == ["from the worker itself"]


def test_flood_of_empty_lines_is_cut_too(log: BuildLog, recorder: Recorder) -> None:
    for _ in range(1000):
        log.output("")
    log.flush()
    assert len(recorder.rows) < 20


def test_values_of_secrets_are_masked(log: BuildLog, recorder: Recorder) -> None:
    log.output("the password is hunter2!")
    log.info("hunter2")
    log.flush()
    assert [row["message"] for row in recorder.rows] == ["the password is <redacted>!", "<redacted>"]


def test_lines_wait_while_the_database_is_down(log: BuildLog, recorder: Recorder) -> None:
    recorder.down = True
    log.info("one")
    log.flush()
    recorder.down = False
    log.info("two")
    log.flush()
    assert [row["message"] for row in recorder.rows] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tab\tstays\r\n", "tab\tstays"),
        ("nul\0", "nul\ufffd"),
        ("\x1b[2J", "\ufffd[2J"),
        ("x" * 5000, "x" * 4096 + " … (line cut)"),
        ("\ud800", "\ufffd"),
    ],
)
def test_lines_are_fit_for_postgresql_and_terminals(text: str, shown: str) -> None:
    assert clean(text) == shown
