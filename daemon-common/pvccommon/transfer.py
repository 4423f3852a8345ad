"""A one-shot channel that carries bytes between two of our daemons: TLS, a ticket, frames, one answer.

One end listens and hands the other, by some way both trust, an offer: where, a random ticket, and the
fingerprint of its certificate. The other connects, compares the fingerprint, and sends the ticket. Then one
of them sends DATA frames and END; at last the end that listened sends ANSWER, {"result"} or {"error"}, which
may also come before END, when going on makes no sense. A connection that ends without END was broken off.

A frame is its type, an offset, a length, and as many bytes. Offsets only grow; what lies between two frames
is zeros, which need not be sent. Memory is bounded by the longest frame, and who reads slowly slows down who
sends.
"""

import hashlib
import hmac
import json
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NoReturn

from pvccommon.errors import EnvironmentFault, NoAnswer, error_from_dict

HEADER = struct.Struct(">BQI")
LONGEST = 1024 * 1024
LONGEST_ANSWER = 64 * 1024
ZEROS = bytes(LONGEST)
TICKET_BYTES = 32
CONNECT_TIMEOUT_S = 10.0
IDLE_S = 120.0  # who neither sends nor takes anything for so long is given up
ANSWER_TIMEOUT_S = 1800.0  # what was sent is brought to stable storage meanwhile
SIGN_OF_LIFE_S = 5.0  # while only zeros come, an empty frame says so
DRAIN_S = 10.0


class Type(IntEnum):
    TICKET = 1
    DATA = 2
    END = 3
    ANSWER = 4


@dataclass(frozen=True)
class Offer:
    """Where to connect, and what makes sure that each end is the right one. `ticket` is secret."""

    address: str
    port: int
    ticket: str
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Frame:
    type: Type
    offset: int
    data: bytes


class Channel:
    """One end of a connection; close it in any case.

    Errors of the connection are EnvironmentFault; when it broke, NoAnswer.
    """

    def __init__(self, connection: ssl.SSLSocket, what: str, idle_s: float = IDLE_S) -> None:
        self._connection = connection
        self._what = what
        self._idle_s = idle_s
        connection.settimeout(idle_s)
        # The head of a frame and its data are two writes: with Nagle's algorithm the second would wait for
        # the delayed acknowledgement of the first, some 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer whose machine is gone while the answer is awaited is found out by the kernel.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Without END or ANSWER before it, this breaks the transfer off. Safe to repeat."""
        self._connection.close()

    # ---- frames

    def send(self, kind: Type, data: bytes | memoryview = b"", offset: int = 0) -> None:
        try:
            self._connection.sendall(HEADER.pack(kind, offset, len(data)))
            if data:
                self._connection.sendall(data)
        except (OSError, ValueError) as exc:
            raise self._broken(exc) from exc

    def receive(self, longest: int = LONGEST) -> Frame:
        """The next frame; raises EnvironmentFault for the end of the connection, and for what is none."""
        kind, offset, length = HEADER.unpack(self._read(HEADER.size))
        if kind not in set(Type) or length > longest:
            raise EnvironmentFault(self._what, "the other end does not keep to the protocol")
        return Frame(Type(kind), offset, self._read(length))

    def is_readable(self) -> bool:
        """Whether the other end has sent something, or has gone."""
        if self._connection.pending():
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _read(self, length: int) -> bytes:
        buffer = bytearray(length)
        view, done = memoryview(buffer), 0
        try:
            while done < length:
                count = self._connection.recv_into(view[done:])
                if not count:
                    raise NoAnswer(self._what, "the other end broke it off")
                done += count
        except (OSError, ValueError) as exc:
            raise self._broken(exc) from exc
        return bytes(buffer)

    def _broken(self, exc: Exception) -> NoAnswer:
        if isinstance(exc, TimeoutError):
            return NoAnswer(self._what, f"nothing has moved for {self._idle_s:g} s")
        return NoAnswer(self._what, f"the connection broke: {exc}")

    # ---- the answer

    def send_answer(self, document: dict[str, Any]) -> None:
        """{"result": …} or {"error": PvcError.to_dict()}: nothing follows."""
        self.send(Type.ANSWER, json.dumps(document).encode())

    def receive_answer(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The result; raises the error the other end has sent."""
        self._connection.settimeout(timeout_s)
        return self.read_answer(self.receive(LONGEST_ANSWER))

    def read_answer(self, frame: Frame) -> Any:
        if frame.type is not Type.ANSWER:
            raise EnvironmentFault(self._what, "the other end does not keep to the protocol")
        try:
            document = json.loads(frame.data)
            if "error" in document:
                raise error_from_dict(document["error"])
            return document["result"]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise EnvironmentFault(self._what, "the other end's answer is malformed") from exc

    def drain(self, seconds: float = DRAIN_S) -> None:
        """Take what the other end still sends, so that the answer is not lost with a reset connection."""
        deadline = time.monotonic() + seconds
        try:
            self._connection.settimeout(seconds)
            while time.monotonic() < deadline and self._connection.recv(LONGEST):
                pass
        except (OSError, ValueError):
            return


class Sender:
    """Sends a content piece by piece; zeros are left out."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sent = time.monotonic()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Raises the other end's error when it has answered before the end."""
        for start in range(0, len(data), LONGEST):
            self._write(data[start : start + LONGEST])

    def finish(self) -> None:
        """Say that this was all."""
        self._channel.send(Type.END, offset=self.size_bytes)

    def _write(self, piece: bytes) -> None:
        if self._channel.is_readable():
            self._raise_answer()
        try:
            self._put(piece)
        except EnvironmentFault:
            if self._channel.is_readable():
                self._raise_answer()
            raise

    def _raise_answer(self) -> NoReturn:
        self._channel.receive_answer()
        raise EnvironmentFault("send data", "the other end has answered before it had everything")

    def _put(self, piece: bytes) -> None:
        offset = self.size_bytes
        self.size_bytes += len(piece)
        if piece != ZEROS[: len(piece)]:
            self._channel.send(Type.DATA, piece, offset)
        elif time.monotonic() - self._sent > SIGN_OF_LIFE_S:
            self._channel.send(Type.DATA, offset=self.size_bytes)
        else:
            return
        self._sent = time.monotonic()


class Receiver:
    """A content as it comes, to be read like a file; what the sender has left out reads as zeros."""

    def __init__(self, channel: Channel, first: Frame | None = None) -> None:
        self._channel = channel
        self._position = 0
        self._data: bytes | memoryview = b""
        self._data_offset = 0  # up to here zeros are read
        self._ended = False
        if first is not None:
            self._take(first)

    def read(self, size: int, /) -> bytes:
        """At least one byte unless it has ended; raises EnvironmentFault when it was broken off."""
        while True:
            if self._position < self._data_offset:
                return self._zeros(min(size, LONGEST, self._data_offset - self._position))
            if self._data:
                return self._piece(size)
            if self._ended or size <= 0:
                return b""
            self._take(self._channel.receive())

    def pieces(self) -> Iterator[bytes]:
        while piece := self.read(LONGEST):
            yield piece

    def _zeros(self, length: int) -> bytes:
        self._position += length
        return ZEROS[:length]

    def _piece(self, size: int) -> bytes:
        if isinstance(self._data, bytes) and len(self._data) <= size:
            piece, self._data = self._data, b""
        else:
            view = memoryview(self._data)
            piece, self._data = bytes(view[:size]), view[size:]
        self._position += len(piece)
        self._data_offset = self._position
        return piece

    def _take(self, frame: Frame) -> None:
        if frame.type is Type.ANSWER:
            self._channel.read_answer(frame)
        if frame.type not in (Type.DATA, Type.END) or frame.offset < self._position:
            raise EnvironmentFault("receive data", "the other end does not keep to the protocol")
        self._data, self._data_offset = frame.data, frame.offset
        self._ended = frame.type is Type.END


def connect(offer: Offer, what: str, *, idle_s: float = IDLE_S) -> Channel:
    """Connect to the end that has made an offer. Raises EnvironmentFault; an offer can be used once."""
    try:
        plain = socket.create_connection((offer.address, offer.port), timeout=CONNECT_TIMEOUT_S)
    except OSError as exc:
        hint = "is node.transfer_address of that node an address the API can reach?"
        why = f"cannot connect to {offer.address} port {offer.port}: {exc.strerror or exc}"
        raise EnvironmentFault(what, why, hint) from exc
    try:
        connection = _client_context().wrap_socket(plain)
    except OSError as exc:
        plain.close()
        raise EnvironmentFault(what, f"no TLS with {offer.address}: {exc}") from exc
    channel = Channel(connection, what, idle_s)
    try:
        if not hmac.compare_digest(fingerprint(connection.getpeercert(binary_form=True)), offer.fingerprint):
            raise EnvironmentFault(what, f"{offer.address} port {offer.port} has another certificate")
        channel.send(Type.TICKET, offer.ticket.encode())
    except BaseException:
        channel.close()
        raise
    return channel


def fingerprint(certificate: bytes | None) -> str:
    """SHA-256 of a certificate (DER)."""
    return hashlib.sha256(certificate or b"").hexdigest()


def _client_context() -> ssl.SSLContext:
    """Nobody has signed the certificate; the fingerprint is what is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
