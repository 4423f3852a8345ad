"""Turning the chatter of apt and dpkg into a percentage and a readable log."""

import re
from collections.abc import Callable
from typing import Final

_TOTAL: Final = re.compile(r"\d+ upgraded, (\d+) newly installed")
_STEP: Final = re.compile(r"(Unpacking|Setting up) (\S+)")
_BORING: Final = re.compile(
    r"Selecting previously|Preparing to unpack|Get:|Reading |Building |Unpacking |\(Reading |\s{2}\S|\s*$"
    r"|dpkg: (regarding|warning: ignoring) | \S+ pre-depends on|\S+/dpkg --status-fd|\(Noting |Scanning "
)
# About what a small server has: apt is run for the essential packages first, and tells of those only.
_EXPECTED_PACKAGES: Final = 250
_SMALLEST_STEP: Final = 2.0


class AptProgress:
    """Give `line` to run(on_line=…). Reports from `first` to `last` percent; a package is two of the steps.

    What dpkg says while unpacking stays out of the log (it is still in the message of a failure).
    """

    def __init__(self, report: Callable[[str, float], object], first: float = 0, last: float = 100) -> None:
        self._report = report
        self._first, self._last = first, last
        self._shown = first
        self._done = self._total = 0

    def line(self, text: str) -> str | None:
        """Take note of one line of output; returns what to log of it."""
        total, step = _TOTAL.search(text), _STEP.match(text)
        if total:
            self._total += 2 * int(total[1])
        if step:
            self._done += 1
            self._step(f"{step[1].lower()} {step[2]}")
        return None if _BORING.match(text) else text

    def _step(self, message: str) -> None:
        share = min(1.0, self._done / max(self._total, 2 * _EXPECTED_PACKAGES))
        percent = self._first + (self._last - self._first) * share
        if percent >= self._shown + _SMALLEST_STEP:
            self._shown = percent
            self._report(message, round(percent))
