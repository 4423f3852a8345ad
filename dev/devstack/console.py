"""Follows the log of a serial console as it grows."""

import codecs
import re
import time
from collections.abc import Iterator
from pathlib import Path

from pvccommon.errors import TimedOut

# Terminal control, ECMA-48: OSC, CSI and other escape sequences, any control character but newline and tab.
CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f]"
)
PAUSE_S = 0.1


def follow_until(path: Path, wanted: str, timeout_s: float) -> Iterator[str]:
    """The console's lines, made safe for a terminal, up to and with the one that has `wanted` in it.

    That one need not be complete: a prompt has no newline. Raises TimedOut when it does not come.
    """
    deadline = time.monotonic() + timeout_s
    pending = ""
    for text in _growing(path, deadline):
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            yield (shown := printable(line))
            if wanted in shown:
                return
        if wanted in printable(pending):
            yield printable(pending)
            return
    raise TimedOut(f"wait for {wanted!r} on the console", f"not seen in {timeout_s:g} s", f"less -R {path}")


def printable(line: str) -> str:
    return CONTROL.sub("", line).rstrip()


def _growing(path: Path, deadline: float) -> Iterator[str]:
    """What is in the file, then what is added; an empty text while there is nothing new."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    if not path.exists():
        return
    with path.open("rb") as file:
        while time.monotonic() < deadline:
            chunk = file.read()
            yield decoder.decode(chunk)
            if not chunk:
                time.sleep(PAUSE_S)
