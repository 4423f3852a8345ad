"""The build log: lines on standard output, with the level in front as sd-daemon(3) has it ("<4>text").

The worker reads one pipe with standard output and standard error together, so writing and flushing line by
line keeps the order. Text that did not come from the script's author (output of a program) always gets a
prefix of ours, so that a line of it beginning with "<3>" stays text.
"""

import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, TextIO


class Level(IntEnum):
    """Log levels, numbered as in syslog(3)."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


# Control characters would let a program's output move the cursor of whoever reads the log; tab stays.
_VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\t\n"}


def open_log() -> None:
    """Make standard output and error line buffered and unable to raise on odd characters."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def write(level: Level, message: str, *, stream: TextIO | None = None) -> None:
    """Write `message`, one log line for each of its lines; an empty message is an empty line."""
    text = "".join(f"<{level:d}>{line}\n" for line in visible_lines(message))
    out = stream or sys.stdout
    out.write(text)
    out.flush()


def visible_lines(message: str) -> Iterator[str]:
    """Yield the lines of a text; of a line overwritten by carriage returns only what was last seen."""
    for line in message.removesuffix("\n").split("\n"):
        yield line.rstrip("\r").rpartition("\r")[2].translate(_VISIBLE)
