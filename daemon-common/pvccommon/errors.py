"""Errors say what failed, why, and what to do.

PvcError
├── WrongInput           the request cannot be carried out as given; `problems` lists every reason
├── NotFound             a named object does not exist
├── Exists               a name is taken
├── WrongState           the object exists but is not in a state that allows this
│   └── LeaseLost        the build belongs to another process now; touch nothing of it
├── Unauthenticated      no token, or an unknown one
├── Forbidden            the token's role does not allow this
├── NoSpace              memory, pool or file system is too full
├── Busy                 somebody else holds it; trying again may help
├── TimedOut             a time limit ran out
├── Cancelled            an operator asked for the end
├── ScriptFailed         a builder script raised, hung, ended or answered rubbish
├── EnvironmentFault     a program, service or device of this machine does not work
│   ├── NoAnswer         the other end says nothing, or has gone: it may be restarted just now
│   └── CommandFailed    an outside program ended badly (see run.py)
│       ├── CommandNotFound
│       └── CommandTimedOut
└── Internal             a defect of ours
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar


class Kind(Enum):
    """The sort of an error: decides HTTP status, task state and exit code (see `HTTP_STATUS`)."""

    WRONG_INPUT = "wrong-input"
    NOT_FOUND = "not-found"
    EXISTS = "exists"
    WRONG_STATE = "wrong-state"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NO_SPACE = "no-space"
    BUSY = "busy-retry"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    SCRIPT = "script-failed"
    ENVIRONMENT = "environment"
    INTERNAL = "internal"


# Existing clients hide the text of a 5xx answer to GET, so whatever an operator must read is a 4xx.
HTTP_STATUS: dict[Kind, int] = {
    Kind.WRONG_INPUT: 400,
    Kind.NOT_FOUND: 404,
    Kind.EXISTS: 400,
    Kind.WRONG_STATE: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NO_SPACE: 400,
    Kind.BUSY: 503,
    Kind.TIMEOUT: 504,
    Kind.CANCELLED: 400,
    Kind.SCRIPT: 400,
    Kind.ENVIRONMENT: 500,
    Kind.INTERNAL: 500,
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where (a dotted path such as `disks[1].size`) and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class PvcError(Exception):
    """Base of everything we raise on purpose.

    `what` is verb and object ("map volume vms/web1_sda"), `why` the cause, `hint` what the reader can do.
    """

    kind: ClassVar[Kind] = Kind.INTERNAL

    def __init__(self, what: str, why: str = "", hint: str = "", problems: Iterable[Problem] = ()) -> None:
        self.what = what
        self.problems = tuple(problems)
        self.why = why or "; ".join(map(str, self.problems))
        self.hint = hint
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """What and why in one line."""
        return f"{self.what}: {self.why}" if self.why else self.what

    def to_dict(self) -> dict[str, Any]:
        """JSON shape of an API error: message, what, why, hint, kind, problems [{path, message}]."""
        return {
            "message": f"{self.message} (hint: {self.hint})" if self.hint else self.message,
            "what": self.what,
            "why": self.why,
            "hint": self.hint,
            "kind": self.kind.value,
            "problems": [{"path": problem.path, "message": problem.message} for problem in self.problems],
        }


class WrongInput(PvcError):
    kind = Kind.WRONG_INPUT


class NotFound(PvcError):
    kind = Kind.NOT_FOUND


class Exists(PvcError):
    kind = Kind.EXISTS


class WrongState(PvcError):
    kind = Kind.WRONG_STATE


class LeaseLost(WrongState):
    pass


class Unauthenticated(PvcError):
    kind = Kind.UNAUTHENTICATED


class Forbidden(PvcError):
    kind = Kind.FORBIDDEN


class NoSpace(PvcError):
    kind = Kind.NO_SPACE


class Busy(PvcError):
    kind = Kind.BUSY


class TimedOut(PvcError):
    kind = Kind.TIMEOUT


class Cancelled(PvcError):
    kind = Kind.CANCELLED


class ScriptFailed(PvcError):
    kind = Kind.SCRIPT


class EnvironmentFault(PvcError):
    kind = Kind.ENVIRONMENT


class NoAnswer(EnvironmentFault):
    pass


class Internal(PvcError):
    kind = Kind.INTERNAL


def error_from_dict(document: dict[str, Any]) -> PvcError:
    """Rebuild an error that crossed a process border as `to_dict()`; an unknown kind becomes Internal."""
    classes: dict[str, type[PvcError]] = {cls.kind.value: cls for cls in PvcError.__subclasses__()}
    cls = classes.get(str(document.get("kind")), Internal)
    problems = [
        Problem(str(p.get("path", "")), str(p.get("message", ""))) for p in document.get("problems", ())
    ]
    what, why, hint = (str(document.get(key, "")) for key in ("what", "why", "hint"))
    return cls(what or str(document.get("message", "unknown error")), why, hint, problems)
