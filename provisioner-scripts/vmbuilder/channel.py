"""The script's end of the protocol with the broker: JSON objects, one a line, over one socket.

While a stage runs, the script's side asks and the worker answers, one question at a time. The socket belongs
to the process that opened it: a child made by fork cannot speak in its parent's name by accident.
"""

import json
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from vmbuilder.errors import BrokerError, ClusterError

MESSAGE_LIMIT_BYTES: Final = 16 * 1024 * 1024

JsonObject = dict[str, Any]


class ChannelClosed(Exception):
    """The worker has gone, or speaks something that is not the protocol."""


class Channel:
    """Messages to and from the worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._incoming: BinaryIO = connection.makefile("rb")
        self._turn = threading.Lock()
        self._owner_pid = os.getpid()
        self._last_id = 0

    @classmethod
    def from_descriptor(cls, descriptor: int) -> "Channel":
        """Take over an inherited socket and stop it from being inherited any further."""
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor))

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; raises ChannelClosed when the worker has gone."""
        self._require_owner()
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        if len(line) > MESSAGE_LIMIT_BYTES:
            raise ClusterError(f"message of {len(line)} bytes is longer than the protocol allows")
        try:
            self._connection.sendall(line)
        except OSError as exc:
            raise ChannelClosed("the worker has closed the channel") from exc

    def receive(self) -> JsonObject | None:
        """Return the next message, or None at the end of the conversation."""
        self._require_owner()
        line = self._incoming.readline(MESSAGE_LIMIT_BYTES + 1)
        if not line:
            return None
        if not line.endswith(b"\n"):
            raise ChannelClosed("message cut short or too long")
        try:
            message = json.loads(line)
        except ValueError as exc:
            raise ChannelClosed("message is not JSON") from exc
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ChannelClosed("message has no type")
        return message

    def request(self, verb: str, **arguments: Any) -> JsonObject:
        """Ask the broker for something and wait for its answer; raises BrokerError when it refuses."""
        with self._turn:
            self._last_id += 1
            self.send({"type": "request", "id": self._last_id, "verb": verb, "args": arguments})
            reply = self.receive()
            if reply is None:
                raise ChannelClosed("the worker has closed the channel")
            if reply["type"] != "reply" or reply.get("id") != self._last_id:
                raise ChannelClosed(f"expected the reply to {verb}, got {reply['type']}")
        error = reply.get("error")
        if error:
            raise _broker_error(verb, error)
        result = reply.get("result")
        return result if isinstance(result, dict) else {}

    def _require_owner(self) -> None:
        if os.getpid() != self._owner_pid:
            raise ChannelClosed("the channel belongs to another process; do not use it after fork()")


def _broker_error(verb: str, error: Mapping[str, Any]) -> BrokerError:
    return BrokerError(
        str(error.get("what") or f"the cluster refused {verb}"),
        str(error.get("why") or ""),
        str(error.get("hint") or ""),
        str(error.get("kind") or "internal"),
    )
