"""A server on loopback for what a WSGI transport cannot show: early answers, stalls, broken connections."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Exchange:
    """One connection. The handler reads and writes as it likes; leaving it closes the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.body_bytes = 0
        self.length = 0

    def read_head(self) -> None:
        """Not a byte further, so that the body stays unread."""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += self.sock.recv(1)
        for line in self.head.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(": ")
            if name.lower() == "content-length":
                self.length = int(value)

    def read_body(self, limit: int | None = None) -> None:
        """Forget the body, up to `limit` bytes of it."""
        buffer = bytearray(1 << 20)
        wanted = self.length if limit is None else limit
        while self.body_bytes < wanted:
            read = self.sock.recv_into(buffer, min(len(buffer), wanted - self.body_bytes))
            if not read:
                return
            self.body_bytes += read

    def answer(self, status: str, content: Any) -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body)

    def begin_download(self, length: int) -> None:
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        )
        self.sock.sendall(head.encode())

    def wait_for_end(self) -> None:
        """Until the client closes."""
        with contextlib.suppress(OSError):
            while self.sock.recv(1 << 16):
                pass


@contextlib.contextmanager
def socket_api(handler: Callable[[Exchange], None]) -> Iterator[tuple[str, list[Exchange]]]:
    """Serve connections one by one; gives the URL and what was exchanged so far."""
    exchanges: list[Exchange] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                exchange = Exchange(sock)
                exchanges.append(exchange)
                with contextlib.suppress(OSError):
                    exchange.read_head()
                    handler(exchange)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", exchanges
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
