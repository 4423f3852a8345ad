"""The worker's end of the talk with the runner in the sandbox.

One thread serves two descriptors: the channel (JSON lines: the runner's answers and requests) and the pipe
with everything the sandbox prints. Both are hostile: sizes are limited, and whatever is not the protocol
ends the build.
"""

import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from pvccommon.errors import Internal, PvcError, ScriptFailed, WrongInput
from pvccommon.models import Json
from pvcnoded.build_log import BuildLog, clean

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024
TICK_S = 0.2
SEND_TIMEOUT_S = 30
READ_BYTES = 16 * 1024
DRAIN_READS = 64
# The class of errors by which a script says that it cannot build what is asked for (vmbuilder.errors).
REFUSAL = "ValidationError"

Answer = Callable[[str, Json], Json]


class StageTimedOut(ScriptFailed):
    """A stage did not end within its time limit."""


class Conversation:
    """Sends a message and serves the script's requests until the answer comes."""

    def __init__(self, channel: socket.socket, output: int, log: BuildLog, answer: Answer) -> None:
        self._channel = channel
        self._output = output
        self._log = log
        self._answer = answer
        self._inbox = b""
        self._partial = b""
        self._output_open = True
        self._deadline = 0.0
        self.usable = True  # false while a call is out, and for good once the runner did not answer it
        channel.settimeout(SEND_TIMEOUT_S)
        os.set_blocking(output, False)

    def call(self, message: Json, what: str, timeout_s: float) -> Any:
        """Have the runner do one thing and return its result.

        Raises ScriptFailed (the script raised; the sandbox ended; not our protocol), StageTimedOut.
        """
        deadline = time.monotonic() + timeout_s
        self.usable = False
        self._deadline = deadline
        self._send(message, what)
        while True:
            reply = self._receive(what, deadline, timeout_s)
            if reply.get("type") == "request":
                self._serve(reply, what)
            elif reply.get("type") in ("done", "failed") and reply.get("stage") == message.get(
                "stage", "load"
            ):
                self.usable = True
                self.drain()
                return _result(reply, what, self._log)
            else:
                raise ScriptFailed(what, f"the sandbox sent an unexpected message {str(reply)[:80]!r}")

    def drain(self) -> None:
        """Take what the sandbox has printed so far (what background processes print for ever is left)."""
        for _ in range(DRAIN_READS):
            if self._log.is_cut or not self._read_output():
                break
        self._log.flush()

    def close_output(self) -> None:
        """The sandbox has ended: take the rest, with the last line even if unfinished."""
        while not self._log.is_cut and self._read_output():
            pass
        if self._partial:
            self._log.output(self._partial.decode(errors="replace"))
            self._partial = b""
        self._log.flush()

    def _serve(self, request: Json, what: str) -> None:
        reply: Json = {"type": "reply", "id": request.get("id")}
        verb, arguments = request.get("verb"), request.get("args")
        try:
            if not isinstance(verb, str) or not isinstance(arguments, dict):
                raise ScriptFailed(what, "the sandbox sent a malformed request")
            reply["result"] = self._answer(verb, arguments)
        except PvcError as exc:
            reply["error"] = exc.to_dict()
        self._send(reply, what)

    def _send(self, message: Json, what: str) -> None:
        self._channel.settimeout(max(0.1, min(SEND_TIMEOUT_S, self._deadline - time.monotonic())))
        try:
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError as exc:
            raise ScriptFailed(what, "the script does not read the answers to its requests") from exc
        except OSError as exc:
            raise self._ended(what) from exc

    def _receive(self, what: str, deadline: float, timeout_s: float) -> Json:
        """The next message; meanwhile the output is logged."""
        while b"\n" not in self._inbox:
            if len(self._inbox) > MAX_MESSAGE_BYTES:
                raise ScriptFailed(what, f"the sandbox sent a message of more than {MAX_MESSAGE_BYTES} bytes")
            if time.monotonic() > deadline:
                self.drain()
                raise StageTimedOut(
                    what,
                    f"not done after {timeout_s:g} s",
                    "raise builds.stage_timeout_s, or mend the script",
                )
            self._wait(deadline, what)
        line, _, self._inbox = self._inbox.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ScriptFailed(what, "the sandbox sent something that is not JSON") from exc
        if not isinstance(message, dict):
            raise ScriptFailed(what, "the sandbox sent something that is not a message")
        return message

    def _wait(self, deadline: float, what: str) -> None:
        wait_s = max(0.0, min(TICK_S, deadline - time.monotonic()))
        watched = [self._channel.fileno(), *([self._output] if self._output_open else [])]
        ready, _, _ = select.select(watched, [], [], wait_s)
        if self._output in ready:
            self._read_output()
        self._log.tick()
        if self._channel.fileno() in ready:
            try:
                chunk = self._channel.recv(256 * 1024)
            except OSError:
                chunk = b""
            if not chunk:
                raise self._ended(what)
            self._inbox += chunk

    def _ended(self, what: str) -> ScriptFailed:
        self.drain()
        return ScriptFailed(
            what, "the script's process ended without an answer", "did it call os._exit(), or was it killed?"
        )

    def _read_output(self) -> bool:
        """Log the lines that are there; False when there are none, or no more will come."""
        try:
            chunk = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._output_open = False
            return False
        if self._log.is_cut:
            return True  # taken, so that the script goes on, and dropped
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            self._log.output(line.decode(errors="replace"))
        return True


def _result(reply: Json, what: str, log: BuildLog) -> Any:
    if reply["type"] == "done":
        return reply.get("result")
    error = reply.get("error")
    if not isinstance(error, dict):
        raise Internal(what, "the sandbox reported a failure without a reason")
    for line in str(error.get("traceback") or "").splitlines()[-60:]:
        log.error(line)
    message = " ".join(str(error.get("message", "")).split())[:2000]
    if error.get("class") == REFUSAL:
        raise WrongInput(what, clean(message), "change the arguments or the profile, and create the VM again")
    why = f"{str(error.get('class', 'error'))[:80]}: {message}"
    raise ScriptFailed(what, clean(why), "see the log of the build")
