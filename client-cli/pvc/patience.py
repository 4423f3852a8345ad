"""How long an API that is away (restart, network) is borne."""

import time
from collections.abc import Callable

from pvc.errors import CliError

PASSING_KINDS = ("unreachable", "busy-retry", "timeout")
# Request Timeout, Locked, Too Early, Bad Gateway, Service Unavailable, Gateway Timeout.
PASSING_STATUS = (408, 423, 425, 502, 503, 504)


def passes(error: CliError) -> bool:
    """Whether the error may go away by waiting."""
    return error.kind in PASSING_KINDS or error.status in PASSING_STATUS


class Patience:
    """Bears errors that may pass, up to a limit, whose error `lost` makes; other errors not at all."""

    def __init__(self, limit_s: float, lost: Callable[[CliError], CliError]) -> None:
        self._limit_s = limit_s
        self._lost = lost
        self._since: float | None = None

    def renew(self) -> None:
        self._since = None

    def bear(self, error: CliError) -> None:
        """Raises when the error will not pass by waiting, or has lasted too long."""
        if not passes(error):
            raise error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > self._limit_s:
            raise self._lost(error) from error
