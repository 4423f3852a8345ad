"""Regular expressions that come from scripts, matched within a time limit.

A pattern comes from a stranger's script and a value from any operator; with backtracking, a short value can
take years. So patterns are matched by the `regex` library, which can stop, and all patterns of one request
share one budget.
"""

import time
from dataclasses import dataclass, field

import regex

MAX_PATTERN = 1024  # characters
MAX_MATCHED = 1024  # characters of a value, or of an item of a list
BUDGET_S = 1.0


@dataclass
class Budget:
    """Time that the patterns of one request may still take."""

    seconds: float = field(default=BUDGET_S)


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless the text is a regular expression of bearable length."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"is longer than {MAX_PATTERN} characters")
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, MemoryError) as exc:
        raise ValueError(f"is not a regular expression: {exc}") from exc


def fits(pattern: str, text: str, budget: Budget) -> bool:
    """Whether the whole text matches. Raises ValueError: too long, too costly, or not a pattern."""
    check_pattern(pattern)
    if len(text) > MAX_MATCHED:
        raise ValueError(f"has more than {MAX_MATCHED} characters")
    started = time.monotonic()
    try:
        # concurrent: other requests are served meanwhile.
        found = regex.fullmatch(pattern, text, timeout=max(budget.seconds, 0.001), concurrent=True)
    except TimeoutError as exc:
        raise ValueError("takes too long to compare with the script's pattern; give less") from exc
    finally:
        budget.seconds -= time.monotonic() - started
    return found is not None
