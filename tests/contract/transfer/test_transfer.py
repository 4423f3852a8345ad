"""The channel between API and node, with a real connection: who may use it, and how it ends."""

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest

from pvccommon import transfer
from pvccommon.config import Node
from pvccommon.errors import Busy, EnvironmentFault, NoSpace
from pvccommon.transfer import HEADER, LONGEST, Channel, Offer, Receiver, Sender, Type, connect
from pvcnoded.transfers import Transfers, ports

MIB = 1024**2


class Served:
    """A node that takes what comes: `content` and `failure` are there when `done` is set."""

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        self.content = b""
        self.failure: Exception | None = None
        self.done = threading.Event()

    def offer(self, serve: Callable[[Channel], Any] | None = None) -> Offer:
        return Offer(**self.transfers.offer("test", serve or self.take))

    def take(self, channel: Channel) -> Any:
        try:
            self.content = b"".join(Receiver(channel).pieces())
            return {"bytes": len(self.content)}
        except Exception as exc:
            self.failure = exc
            raise
        finally:
            self.done.set()

    def broken_off(self) -> str:
        assert self.done.wait(10)
        assert isinstance(self.failure, EnvironmentFault)
        return self.failure.why


@pytest.fixture
def served() -> Served:
    return Served(Transfers(Node(name="hv1", transfers=2), idle_s=2, offer_s=2))


@pytest.fixture(autouse=True)
def _nothing_stays_open(served: Served) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while served.transfers._free._value != 2:
        assert time.monotonic() < deadline, "a transfer has not ended"
        time.sleep(0.02)


def send(offer: Offer, *pieces: bytes) -> Any:
    with connect(offer, "test", idle_s=5) as channel:
        sender = Sender(channel)
        for piece in pieces:
            sender.write(piece)
        sender.finish()
        return channel.receive_answer(10)


def test_what_is_sent_arrives(served: Served) -> None:
    data = random.Random(1).randbytes(3 * MIB + 17)
    pieces = (data, bytes(2 * MIB), b"x", bytes(5), b"", b"end", bytes(MIB + 1))
    assert send(served.offer(), *pieces) == {"bytes": sum(map(len, pieces))}
    assert served.content == b"".join(pieces)


def test_zeros_are_not_sent(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(served.offer(), "test") as channel:
        sent = []
        real = channel.send
        monkeypatch.setattr(channel, "send", lambda *a, **k: (sent.append(a), real(*a, **k))[1])
        sender = Sender(channel)
        for _ in range(64):
            sender.write(bytes(MIB))
        sender.finish()
        assert channel.receive_answer(10) == {"bytes": 64 * MIB}
    assert [frame[0] for frame in sent] == [Type.END]


def test_a_download_comes_the_other_way(served: Served) -> None:
    data = random.Random(2).randbytes(2 * MIB)

    def serve(channel: Channel) -> Any:
        sender = Sender(channel)
        for piece in (bytes(MIB), data, bytes(7)):
            sender.write(piece)
        sender.finish()
        return {}

    with connect(served.offer(serve), "test") as channel:
        receiver = Receiver(channel, channel.receive())
        assert b"".join(receiver.pieces()) == bytes(MIB) + data + bytes(7)
        assert channel.receive_answer(10) == {}


def test_an_error_is_told_before_everything_has_come(served: Served) -> None:
    def refuse(channel: Channel) -> Any:
        Receiver(channel).read(1)
        raise NoSpace("store it", "the pool is full", "free some")

    with pytest.raises(NoSpace) as caught, connect(served.offer(refuse), "test") as channel:
        sender = Sender(channel)
        for _ in range(2000):
            sender.write(b"x" * MIB)
    assert (caught.value.why, caught.value.hint) == ("the pool is full", "free some")


@pytest.mark.parametrize("after", [0, 1, MIB + 1])
def test_an_abort_is_never_taken_for_the_end(served: Served, after: int) -> None:
    with connect(served.offer(), "test") as channel:
        Sender(channel).write(b"x" * after)
    assert "broke" in served.broken_off()


def test_a_frame_that_breaks_off(served: Served) -> None:
    with connect(served.offer(), "test") as channel:
        channel._connection.sendall(HEADER.pack(Type.DATA, 0, 1000) + b"short")
    assert "broke" in served.broken_off()


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(Type.DATA, 0, LONGEST + 1),
        HEADER.pack(Type.DATA, 0, 2**32 - 1),
        HEADER.pack(9, 0, 0),
        HEADER.pack(Type.TICKET, 0, 0),
        HEADER.pack(Type.DATA, 5, 1) + b"x" + HEADER.pack(Type.DATA, 3, 1) + b"x",
    ],
    ids=["oversize", "huge", "unknown", "ticket", "backwards"],
)
def test_what_is_no_frame(served: Served, frame: bytes) -> None:
    with connect(served.offer(), "test") as channel:
        channel._connection.sendall(frame)
        assert "protocol" in served.broken_off()
        with pytest.raises(EnvironmentFault, match="protocol"):
            channel.receive_answer(10)


def test_a_slow_peer_is_given_up(served: Served) -> None:
    with connect(served.offer(), "test") as channel:
        Sender(channel).write(b"x")
        assert "nothing has moved" in served.broken_off()


def test_one_who_takes_nothing_is_given_up(served: Served) -> None:
    ended = threading.Event()

    def serve(channel: Channel) -> Any:
        try:
            while True:
                channel.send(Type.DATA, b"x" * LONGEST)
        finally:
            ended.set()

    with connect(served.offer(serve), "test"):
        assert ended.wait(10)


def test_who_reads_slowly_slows_down_who_sends(served: Served) -> None:
    begun = threading.Event()

    def serve(channel: Channel) -> Any:
        assert begun.wait(10)
        time.sleep(0.5)
        return {"before": sender.size_bytes, "all": sum(map(len, Receiver(channel).pieces()))}

    with connect(served.offer(serve), "test", idle_s=10) as channel:
        sender = Sender(channel)
        begun.set()
        sender.write(b"x" * 64 * MIB)
        sender.finish()
        answer = channel.receive_answer(10)
    assert answer["all"] == 64 * MIB
    assert answer["before"] < 64 * MIB


def test_a_wrong_ticket_opens_nothing_and_spoils_nothing(served: Served) -> None:
    offer = served.offer()
    for ticket in ("0" * 64, "", offer.ticket[:-1], "x" * 5000):
        with connect(replace(offer, ticket=ticket), "test") as channel, pytest.raises(EnvironmentFault):
            channel.receive_answer(5)
    assert send(offer, b"right") == {"bytes": 5}


def test_another_certificate_gets_no_ticket(served: Served) -> None:
    offer = served.offer()
    with pytest.raises(EnvironmentFault, match="another certificate"):
        connect(replace(offer, fingerprint="0" * 64), "test")
    assert send(offer, b"x") == {"bytes": 1}


def test_who_speaks_no_tls_is_refused(served: Served) -> None:
    offer = served.offer()
    with closing(socket.create_connection((offer.address, offer.port))) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        plain.settimeout(5)
        with suppress(ConnectionResetError):
            assert b"HTTP" not in plain.recv(100)
    assert send(offer, b"x") == {"bytes": 1}


def test_a_ticket_is_good_for_one(served: Served) -> None:
    offer = served.offer()
    with connect(offer, "test") as first:
        Sender(first).write(b"x")
        time.sleep(0.2)
        with pytest.raises(EnvironmentFault), connect(offer, "test") as second:
            second.receive_answer(5)
        Sender(first).finish()


def test_an_offer_nobody_takes_ends(served: Served) -> None:
    offer = served.offer()
    time.sleep(2.5)
    with pytest.raises(EnvironmentFault, match="cannot connect"):
        connect(offer, "test")


def test_not_more_than_configured_at_one_time(served: Served) -> None:
    offers = [served.offer(), served.offer()]
    with pytest.raises(Busy, match="2 transfers are under way"):
        served.offer()
    for offer in offers:
        send(offer, b"x")


def test_ports_can_be_given() -> None:
    assert list(ports(None)) == [0]
    assert list(ports("7400")) == [7400]
    assert list(ports("7400-7402")) == [7400, 7401, 7402]
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFault, match="cannot listen"):
            Transfers(Node(name="hv1", transfer_ports=str(port))).offer("test", lambda _: {})


def inheritable_sockets() -> set[str]:
    """What a program that is started without care would get."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.get_inheritable(int(number)) and "socket" in os.readlink(f"/proc/self/fd/{number}"):
                found.add(number)
    return found


def test_sockets_are_never_inherited(served: Served) -> None:
    before = inheritable_sockets()
    first = served.offer()
    assert inheritable_sockets() == before
    with connect(first, "test") as channel:
        Sender(channel).write(b"x")
        assert inheritable_sockets() == before
        Sender(channel).finish()


def test_an_offer_is_plain_json(served: Served) -> None:
    offer = served.offer()
    assert Offer(**json.loads(json.dumps(offer.to_json()))) == offer
    assert send(offer, b"x") == {"bytes": 1}


def test_signs_of_life(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs of zeros are no silence."""
    monkeypatch.setattr(transfer, "SIGN_OF_LIFE_S", 0.2)
    with connect(served.offer(), "test") as channel:
        sender = Sender(channel)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            sender.write(bytes(MIB))
            time.sleep(0.1)
        sender.finish()
        assert channel.receive_answer(10) == {"bytes": sender.size_bytes}
