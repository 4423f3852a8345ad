"""The build this process serves: for modules that scripts of the old kind call without an object at hand."""

from typing import Any

from vmbuilder.channel import Channel
from vmbuilder.context import Context
from vmbuilder.errors import ClusterError


class Session:
    """The channel and plan of the script being run."""

    def __init__(self, channel: Channel | None, context: Context) -> None:
        self.channel, self.context = channel, context


_current: list[Session] = []


def open_session(channel: Channel | None, context: Context) -> None:
    """Remember them; the runner does this before it imports the script."""
    _current[:] = [Session(channel, context)]


def in_build() -> bool:
    """Whether there is a cluster to ask."""
    return bool(_current and _current[0].channel)


def request(verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the broker; raises BrokerError when it refuses."""
    channel = _current[0].channel if _current else None
    if channel is None:
        raise ClusterError(f"{verb}: no build is running, so there is no cluster to ask")
    return channel.request(verb, **arguments)
