"""A TCP proxy on loopback that breaks connections at given places, as bad networks do."""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PIECE_BYTES = 64 * 1024
# Closing without a farewell: the other side sees a reset.
RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class CuttingProxy:
    """`cuts`: how many bytes clients will have sent in all, over all connections, at each break.

    Every second break loses the answer to what was sent, which has arrived then. At `hold_at` nothing more is
    passed on until `go_on` is set.
    """

    target: tuple[str, int]
    cuts: list[int] = field(default_factory=list)
    hold_at: int | None = None
    url: str = ""
    breaks: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    _sent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        """One connection to its end, in both directions."""
        with client, socket.create_connection(self.target) as server:
            answers = threading.Thread(target=self._answer, args=(client, server), daemon=True)
            answers.start()
            self._send(client, server)
            answers.join()

    def _send(self, client: socket.socket, server: socket.socket) -> None:
        """What the client says, until one of them ends or the next break comes."""
        with suppress(OSError):
            while data := client.recv(PIECE_BYTES):
                passed, is_break = self._count(data)
                server.sendall(passed)
                if is_break:
                    break_off(client, server)
                    return
            server.shutdown(socket.SHUT_WR)

    def _count(self, data: bytes) -> tuple[bytes, bool]:
        """What of it is passed on, and whether the connection breaks then."""
        with self._lock:
            start, self._sent = self._sent, self._sent + len(data)
            if self.hold_at is not None and self._sent >= self.hold_at:
                self.hold_at = None
                self.held.set()
                self.go_on.wait(60)
            if not self.cuts or self.cuts[0] > self._sent:
                return data, False
            if self.breaks % 2:
                return data, False  # its answer will be lost
            self.breaks += 1
            return data[: max(self.cuts.pop(0) - start, 0)], True

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(PIECE_BYTES):
                if self._is_answer_lost():
                    break_off(client, server)
                    return
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def _is_answer_lost(self) -> bool:
        with self._lock:
            if not (self.breaks % 2 and self.cuts and self.cuts[0] <= self._sent):
                return False
            self.cuts.pop(0)
            self.breaks += 1
            return True


def break_off(*ends: socket.socket) -> None:
    """Both sides see a reset as soon as their sockets are closed."""
    for end in ends:
        with suppress(OSError):
            end.setsockopt(*RESET)
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting_proxy(url: str, cuts: Sequence[int] = (), hold_at: int | None = None) -> Iterator[CuttingProxy]:
    """Before the API of this URL."""
    parts = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy((parts.hostname or "", parts.port or 80), sorted(cuts), hold_at)
        proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.go_on.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
