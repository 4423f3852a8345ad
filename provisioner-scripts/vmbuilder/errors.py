"""The errors of a build, as seen by a builder script.

Exception
├── ValidationError      an argument or the plan asks for something this script cannot build
├── ClusterError         the cluster refused or could not do what was asked (message from the broker)
│   └── BrokerError      the same, with its parts: what, why, hint, kind
└── ProvisioningError    a step of the build went wrong
    └── CommandFailed    an outside program failed, was missing, or ran too long
"""

from collections.abc import Sequence


class ValidationError(Exception):
    """An argument or the plan asks for something this script cannot build."""


class ClusterError(Exception):
    """The cluster refused, or could not do, what the script asked for."""


class ProvisioningError(Exception):
    """A step of the build went wrong."""


class BrokerError(ClusterError):
    """The broker's refusal, with its parts."""

    def __init__(self, what: str, why: str = "", hint: str = "", kind: str = "internal") -> None:
        super().__init__(_sentence(what, why, hint))
        self.what, self.why, self.hint, self.kind = what, why, hint, kind


class CommandFailed(ProvisioningError):
    """An outside program failed; `returncode` is None when it never started or ran out of time."""

    def __init__(
        self, argv: Sequence[str], reason: str, *, returncode: int | None = None, tail: str = ""
    ) -> None:
        super().__init__(f"{argv[0]} {reason}" + (f": {tail}" if tail else ""))
        self.argv, self.reason, self.returncode, self.tail = tuple(argv), reason, returncode, tail


def _sentence(what: str, why: str, hint: str) -> str:
    """One line from the parts of an error, leaving out the empty ones."""
    text = f"{what}: {why}" if why else what
    return f"{text} (hint: {hint})" if hint else text
