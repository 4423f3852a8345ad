"""A guest's console, made fit to be shown."""

import os
import time

import pytest

from pvcnoded.console_text import console_lines


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"one\r\ntwo\n", ["one", "two"]),
        (b"\x1b[0;32m[  OK  ]\x1b[0m Started\tthis", ["[  OK  ] Started this"]),
        (b"10%\r20%\r\n", ["10%", "20%"]),
        (b"\x1b[2J\x1b[1;1HInstall\x1b[5;10Hthe base", ["Install", "the base"]),
        (b"\x1b]0;title\x07shown\x1b]2;other\x1b\\ too", ["shown too"]),
        (b"\x1bPq#secret\x1b\\x\x1b(B\x1b7y", ["xy"]),
        (b"\x1b]52;c;never ended", []),
        (b"a\0b\x08\x7f\x9bc\xe2\x80\xaed", ["ab\ufffdcd"]),
        (b"\x1b", []),
        (b"", []),
    ],
)
def test_what_is_shown(written: bytes, shown: list[str]) -> None:
    assert console_lines(written) == shown


@pytest.mark.parametrize("data", [b"\x1b]" * 100_000, b"\x1b[" + b"0" * 200_000, os.urandom(200_000)])
def test_nothing_takes_long_or_slips_through(data: bytes) -> None:
    started = time.monotonic()
    assert all(line.isprintable() and line for line in console_lines(data))
    assert time.monotonic() - started < 1
