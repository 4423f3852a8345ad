"""The worker's end of the protocol, against a hostile other end."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pvccommon.errors import NoSpace, ScriptFailed, WrongInput
from pvcnoded.conversation import Conversation, StageTimedOut


@dataclass
class Log:
    """Remembers what would be logged."""

    is_cut: bool = False

    lines: list[str] = field(default_factory=list)

    def output(self, line: str) -> None:
        self.lines.append(line)

    def error(self, line: str) -> None:
        self.lines.append(f"error: {line}")

    def tick(self) -> None: ...

    def flush(self) -> None: ...


@dataclass
class Ends:
    channel: socket.socket
    output: int
    conversation: Conversation
    log: Log

    def say(self, *messages: object) -> None:
        for message in messages:
            text = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            self.channel.sendall(text)


def answer(verb: str, arguments: dict) -> dict:
    if verb == "full":
        raise NoSpace("create volume", "no space", "make some")
    return {"verb": verb, **arguments}


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    log = Log()
    with ours, theirs:
        yield Ends(theirs, writer, Conversation(ours, reader, log, answer), log)
    for fd in (reader, writer):
        with pytest.MonkeyPatch.context():
            try:
                os.close(fd)
            except OSError:
                pass


STAGE = {"type": "stage", "stage": "setup"}
DONE = {"type": "done", "stage": "setup", "result": None}


def test_result_of_a_stage_is_returned(ends: Ends) -> None:
    ends.say({**DONE, "result": {"a": 1}})
    assert ends.conversation.call(STAGE, "run setup", 5) == {"a": 1}
    assert json.loads(ends.channel.recv(1000)) == STAGE


def test_requests_are_answered_and_refusals_told(ends: Ends) -> None:
    ends.say(
        {"type": "request", "id": 1, "verb": "x", "args": {"y": 2}},
        {"type": "request", "id": 2, "verb": "full", "args": {}},
        {"type": "request", "id": 3, "verb": 5, "args": []},
        DONE,
    )
    ends.conversation.call(STAGE, "run setup", 5)
    replies = [json.loads(line) for line in ends.channel.makefile("rb").read1(10000).splitlines()][1:]
    assert replies[0] == {"type": "reply", "id": 1, "result": {"verb": "x", "y": 2}}
    assert replies[1]["error"]["kind"] == "no-space" and replies[1]["error"]["hint"] == "make some"
    assert replies[2]["error"]["kind"] == "script-failed"


def test_output_is_logged_in_order_before_the_stage_ends(ends: Ends) -> None:
    os.write(ends.output, b"one\ntwo \xff\n" + "drei ä\n".encode() + b"unfinished")
    ends.say(DONE)
    ends.conversation.call(STAGE, "run setup", 5)
    assert ends.log.lines == ["one", "two \ufffd", "drei ä"]
    os.close(ends.output)
    ends.conversation.close_output()
    assert ends.log.lines[-1] == "unfinished"


def test_failure_of_the_script_is_raised_with_class_and_message(ends: Ends) -> None:
    error = {"class": "ProvisioningError", "message": "no\nmirror", "traceback": "line 1\nline 2"}
    ends.say({"type": "failed", "stage": "setup", "error": error})
    with pytest.raises(ScriptFailed, match="run setup: ProvisioningError: no mirror"):
        ends.conversation.call(STAGE, "run setup", 5)
    assert ends.log.lines == ["error: line 1", "error: line 2"]
    assert ends.conversation.usable, "the script can still clean up"


def test_what_a_script_refuses_was_asked_for_wrongly(ends: Ends) -> None:
    error = {"class": "ValidationError", "message": "there is no such network", "traceback": None}
    ends.say({"type": "failed", "stage": "setup", "error": error})
    with pytest.raises(WrongInput) as caught:
        ends.conversation.call(STAGE, "run setup", 5)
    assert (caught.value.why, bool(caught.value.hint)) == ("there is no such network", True)


def test_hostile_texts_of_a_failure_are_cleaned(ends: Ends) -> None:
    error = {"class": "X\0", "message": "a\0b\ud800" + "c" * 9000, "traceback": None}
    ends.say({"type": "failed", "stage": "setup", "error": error})
    with pytest.raises(ScriptFailed) as caught:
        ends.conversation.call(STAGE, "run setup", 5)
    assert caught.value.why.startswith("X\ufffd: a\ufffdb\ufffdccc") and len(caught.value.why) < 3000


def test_script_that_reads_no_answers_fails_within_the_limit(ends: Ends) -> None:
    request = {"type": "request", "id": 1, "verb": "x", "args": {"y": "z" * 10_000}}

    def ask_and_ask() -> None:
        with contextlib.suppress(BrokenPipeError):  # the end of the test
            ends.say(*[request] * 200)

    thread = threading.Thread(target=ask_and_ask)
    thread.start()
    started = time.monotonic()
    with pytest.raises(ScriptFailed, match="does not read"):
        ends.conversation.call(STAGE, "run setup", 1)
    assert time.monotonic() - started < 10
    ends.channel.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_silence_ends_at_the_time_limit(ends: Ends) -> None:
    started = time.monotonic()
    with pytest.raises(StageTimedOut, match=r"not done after 0.3 s"):
        ends.conversation.call(STAGE, "run setup", 0.3)
    assert time.monotonic() - started < 3
    assert not ends.conversation.usable


def test_endless_output_does_not_outrun_the_time_limit(ends: Ends) -> None:
    stop = threading.Event()

    def flood() -> None:
        os.set_blocking(ends.output, False)
        while not stop.is_set():
            try:
                os.write(ends.output, b"x" * 200 + b"\n")
            except BlockingIOError:
                time.sleep(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with pytest.raises(StageTimedOut):
            ends.conversation.call(STAGE, "run setup", 0.5)
    finally:
        stop.set()
        thread.join()


HOSTILE: dict[str, tuple[Callable[[Ends], None], str]] = {
    "end": (lambda e: e.channel.close(), "ended without an answer"),
    "not json": (lambda e: e.say(b"{nonsense\n"), "not JSON"),
    "not utf-8": (lambda e: e.say(b"\xff\xfe\n"), "not JSON"),
    "not an object": (lambda e: e.say([1, 2]), "not a message"),
    "deep": (lambda e: e.say(b"[" * 100_000 + b"\n"), "not JSON"),
    "unknown type": (lambda e: e.say({"type": "reboot"}), "unexpected message"),
    "other stage": (lambda e: e.say({"type": "done", "stage": "install"}), "unexpected message"),
    "failure without reason": (lambda e: e.say({"type": "failed", "stage": "setup"}), "without a reason"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_the_protocol_fails_the_stage(ends: Ends, name: str) -> None:
    act, reason = HOSTILE[name]
    thread = threading.Thread(target=act, args=(ends,))
    thread.start()
    with pytest.raises(Exception, match=reason):
        ends.conversation.call(STAGE, "run setup", 5)
    thread.join()


def test_endless_message_is_cut_off(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvcnoded.conversation.MAX_MESSAGE_BYTES", 100_000)
    thread = threading.Thread(target=lambda: ends.say(b"x" * 150_000))
    thread.start()
    with pytest.raises(ScriptFailed, match="more than 100000 bytes"):
        ends.conversation.call(STAGE, "run setup", 5)
    thread.join()
