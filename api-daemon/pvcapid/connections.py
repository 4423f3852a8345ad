"""The server's connections: those that wait for their callers hold no thread.

gunicorn gives a thread to each connection that has sent anything, and waits for the rest without end. Here
the loop that accepts connections also reads their requests, up to the end of a small body; threads get those
that are complete. A caller that was answered before everything it sends has come is listened to for a while,
by the same loop: were its connection closed at once, the answer would be lost.
"""

import contextlib
import errno
import functools
import json
import re
import selectors
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import TConn, ThreadWorker

from pvcapid.late_body import Patience, is_read

REQUEST_S = 10.0  # for the header in all, and as long again for a small body
SEND_S = 60.0  # for each piece of an answer
MOST_WAITING = 400  # connections that hold no thread; the oldest make room for new ones
MOST_HEADER_BYTES = 64 * 1024
SMALL_BODY_BYTES = 64 * 1024
# What a caller still sends when it has been answered is taken up to here, so that old clients see the answer.
END_BYTES = 64 * 1024**2
END_S = 60.0
END_IDLE_S = 5.0
SWEEP_S = 0.25
RECEIVE_BYTES = 64 * 1024

HEADER_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
# A caller that expects something waits for the application; bodies in chunks say no length.
AT_ONCE = re.compile(rb"\r\n(?:transfer-encoding|expect)[ \t]*:", re.IGNORECASE)


@dataclass(eq=False)
class Waiting:
    """A connection that brings a request, or is being ended."""

    connection: Any
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    ends: float | None = None  # when it is being ended: the latest time
    needed_bytes: int | None = None  # known when the header has come
    searched_bytes: int = 0
    discarded_bytes: int = 0

    def is_complete(self) -> bool:
        """Whether the application may begin."""
        if self.needed_bytes is None:
            end = self.received.find(HEADER_END, max(0, self.searched_bytes - len(HEADER_END)))
            self.searched_bytes = len(self.received)
            if end < 0:
                return False
            end += len(HEADER_END)
            self.needed_bytes = end + awaited_bytes(bytes(self.received[:end]))
            self.deadline = time.monotonic() + REQUEST_S
        return len(self.received) >= self.needed_bytes


def awaited_bytes(header: bytes) -> int:
    """How much of a body is waited for. gunicorn decides anew what the header says; this is only when."""
    lengths = LENGTH.findall(header)
    if len(lengths) != 1 or AT_ONCE.search(header) or int(lengths[0]) > SMALL_BODY_BYTES:
        return 0
    return int(lengths[0])


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's worker with threads. Only the main thread takes connections out of `_waiting`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: dict[Waiting, None] = {}  # the oldest first
        self._swept = 0.0

    # ---- what gunicorn calls

    def accept(self, server: Any, listener: socket.socket) -> None:
        try:
            connection, client = listener.accept()
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                self._end_oldest()
                time.sleep(0.01)
            elif exc.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        with self._lock:
            self.nr_conns += 1
        self.enqueue_req(TConn(self.cfg, connection, client, server))

    def enqueue_req(self, conn: Any) -> None:
        """A new connection."""
        try:
            conn.init()  # with TLS, the handshake comes with the first bytes that are read
            conn.parser.unreader = Patience(conn.sock)
            self._wait(Waiting(conn, time.monotonic() + REQUEST_S))
        except (OSError, ValueError) as exc:
            self.log.debug("a connection broke at once: %s", exc)
            self._drop(conn)

    def handle(self, conn: Any) -> tuple[bool, Any]:
        """A complete request, in a thread."""
        conn.parser.mesg = None
        conn.parser.unreader.begin()
        keep, _ = super().handle(conn)
        request = conn.parser.mesg
        while keep and request.body.read(8192):  # only what has come already: else it is not kept
            pass
        conn.is_read = request is not None and is_read(request.body.reader)
        return keep and conn.is_read, conn

    def handle_request(self, req: Any, conn: Any) -> bool:
        try:
            return bool(super().handle_request(req, conn))
        except TimeoutError:
            self.log.debug("%s did not take its answer", conn.client)
            return False

    def finish_request(self, fs: Any) -> None:
        """`fs`: the Future of a request, which gunicorn has given its connection as `conn`."""
        conn = fs.conn
        try:
            keep, _ = (False, conn) if fs.cancelled() else fs.result()
            if not self.alive or fs.cancelled():
                self._drop(conn)
            elif keep:
                more = bytearray(conn.parser.unreader.take_buffered())
                seconds = REQUEST_S if more else self.cfg.keepalive
                self._wait(Waiting(conn, time.monotonic() + seconds, more))
            elif conn.is_read:
                self._drop(conn)
            else:
                self._listen_to_end(conn)
        except Exception as exc:
            self.log.debug("a connection broke: %s", exc)
            self._drop(conn)

    def murder_keepalived(self) -> None:
        while len(self._waiting) > MOST_WAITING:
            self._end_oldest()
        now = time.monotonic()
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        with self._lock:
            late = [waiting for waiting in self._waiting if waiting.deadline <= now]
        for waiting in late:
            if waiting.received and waiting.ends is None:
                self.answer(waiting.connection.sock, "408 Request Timeout", "the request came too slowly")
            self._end(waiting)

    # ---- connections without a thread

    def _wait(self, waiting: Waiting) -> None:
        connection = waiting.connection.sock
        connection.setblocking(False)
        with self._lock:
            # Once at least: what has been received already makes no event. A socket can nearly always send.
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self.poller.register(connection, events, functools.partial(self._go_on, waiting))
            self._waiting[waiting] = None

    def _go_on(self, waiting: Waiting, connection: Any) -> None:
        with self._lock:
            if waiting not in self._waiting:
                return
        go_on = functools.partial(self._go_on, waiting)
        try:
            if waiting.ends is None:
                self._receive(waiting)
            else:
                self._discard(waiting, waiting.ends)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.poller.modify(connection, selectors.EVENT_READ, go_on)
        except ssl.SSLWantWriteError:
            self.poller.modify(connection, selectors.EVENT_WRITE, go_on)
        except (OSError, ValueError) as exc:
            self.log.debug("a connection broke: %s", exc)
            self._end(waiting)

    def _receive(self, waiting: Waiting) -> None:
        conn, received = waiting.connection, waiting.received
        if waiting.is_complete():
            self._hand_over(waiting)
            return
        data = conn.sock.recv(RECEIVE_BYTES)
        if data and not received and conn.parser.req_count:  # a further request on a connection that was kept
            waiting.deadline = time.monotonic() + REQUEST_S
        received += data
        if waiting.is_complete() or (not data and waiting.needed_bytes is not None):
            self._hand_over(waiting)
        elif not data:
            self._end(waiting)
        elif waiting.needed_bytes is None and len(received) > MOST_HEADER_BYTES:
            self.handle_error(None, conn.sock, conn.client, ValueError("its header is too long"))
            self._take_out(waiting)
            self._listen_to_end(conn)

    def _hand_over(self, waiting: Waiting) -> None:
        conn = waiting.connection
        conn.parser.unreader.unread(bytes(waiting.received))
        conn.sock.settimeout(SEND_S)
        self._take_out(waiting)
        self._wrap_future(self.tpool.submit(self.handle, conn), conn)

    def _listen_to_end(self, conn: Any) -> None:
        """Nothing more is sent to the caller. With TLS, what it sends is not even deciphered from here on."""
        now = time.monotonic()
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            self._wait(Waiting(conn, now + END_IDLE_S, ends=now + END_S))
        except (OSError, ValueError):  # the caller has gone already
            self._drop(conn)

    def _discard(self, waiting: Waiting, ends: float) -> None:
        data = waiting.connection.sock.recv(RECEIVE_BYTES)
        waiting.discarded_bytes += len(data)
        waiting.deadline = min(ends, time.monotonic() + END_IDLE_S)
        if not data or waiting.discarded_bytes > END_BYTES:
            self._end(waiting)

    def _take_out(self, waiting: Waiting) -> None:
        with self._lock:
            del self._waiting[waiting]
            self.poller.unregister(waiting.connection.sock)

    def _end_oldest(self) -> None:
        with self._lock:
            oldest = next(iter(self._waiting), None)
        if oldest is not None:
            self._end(oldest)

    def _end(self, waiting: Waiting) -> None:
        self._take_out(waiting)
        self._drop(waiting.connection)

    def _drop(self, conn: Any) -> None:
        with self._lock:
            self.nr_conns -= 1
        conn.close()

    # ---- answers of its own

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Requests that never reach the application are answered in JSON, too."""
        self.log.debug("invalid request from %s: %s", addr, exc)
        self.answer(
            client, "400 Bad Request", "the request is malformed, or its line or headers are too long"
        )

    def answer(self, client: socket.socket, status: str, message: str) -> None:
        body = json.dumps({"message": message})
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        with contextlib.suppress(OSError):  # the client is gone
            util.write_nonblock(client, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
