"""Errors as the client shows them: what, why, hint; the kind decides the exit code.

The words of the kinds are the API's own, plus `unreachable` (no answer at all) and `declined` (the
operator said no to a question).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The one table of exit codes; docs/cli.md repeats it for readers and a test compares both.
EXIT_CODES: Mapping[str, int] = {
    "internal": 1,
    "wrong-input": 2,
    "not-found": 3,
    "exists": 4,
    "wrong-state": 5,
    "unauthenticated": 6,
    "forbidden": 6,
    "no-space": 7,
    "busy-retry": 8,
    "unreachable": 9,
    "environment": 10,
    "timeout": 11,
    "cancelled": 12,
    "declined": 13,
    "interrupted": 130,
}

KIND_OF_STATUS: Mapping[int, str] = {
    400: "wrong-input",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    409: "exists",
    429: "busy-retry",
    503: "busy-retry",
    504: "timeout",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where (`disks[1].size`, may be empty) and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class CliError(Exception):
    """Everything the client reports on purpose; shown as one `error:` line and one `hint:` line."""

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        hint: str = "",
        kind: str = "internal",
        problems: Iterable[Problem] = (),
        status: int | None = None,
    ) -> None:
        self.what = what
        self.why = why
        self.hint = hint
        self.kind = kind
        self.problems = tuple(problems)
        self.status = status
        super().__init__(f"{what}: {why}" if why else what)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.kind, 1)

    def lines(self) -> list[str]:
        """The text for stderr. Several problems get a line each; a single one stays in the first line."""
        if len(self.problems) > 1:
            first = f"error: {self.what}: {len(self.problems)} problems"
            listed = [f"  {problem}" for problem in self.problems]
        else:
            why = self.why or "".join(map(str, self.problems))
            first = f"error: {self.what}: {why}" if why else f"error: {self.what}"
            listed = []
        return [first, *listed, *([f"hint: {self.hint}"] if self.hint else [])]


class WrongInput(CliError):
    """Refused before anything was sent."""

    def __init__(self, what: str, *, why: str = "", hint: str = "", problems: Iterable[Problem] = ()) -> None:
        super().__init__(what, why=why, hint=hint, kind="wrong-input", problems=problems)


class Unreachable(CliError):
    """No usable answer from the API."""

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what, why=why, hint=hint, kind="unreachable")


def error_from_answer(status: int, answer: Mapping[str, Any], hint: str = "") -> CliError:
    """The error behind an API answer.

    Our server sends what, why, hint, kind and problems next to `message`. Older servers send `message` alone,
    as a text, or as an object {parameter: help} for parameters that are missing or wrong.
    """
    kind = answer.get("kind") or KIND_OF_STATUS.get(status, "wrong-input" if status < 500 else "internal")
    problems = problems_in(answer.get("problems"))
    message = answer.get("message")
    if isinstance(message, Mapping):
        problems = problems or [Problem(str(path), str(text)) for path, text in message.items()]
        message = "the request was refused"
    what = answer.get("what") or message or f"the API answered with status {status} and no explanation"
    return CliError(
        str(what),
        why=str(answer.get("why") or ""),
        hint=str(answer.get("hint") or hint),
        kind=str(kind),
        problems=problems,
        status=status,
    )


def problems_in(value: object) -> list[Problem]:
    """The problems of an answer; entries of an unexpected shape are kept as text."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [
        Problem(str(entry.get("path") or ""), str(entry.get("message") or ""))
        if isinstance(entry, Mapping)
        else Problem("", str(entry))
        for entry in value
    ]
