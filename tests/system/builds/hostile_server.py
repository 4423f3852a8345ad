"""A web server whose answers are what a test says, byte by byte."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

PIECE = bytes(1024)
PIECE_S = 0.05
NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Reply:
    """What is sent; with `goes_on` zeros follow, slowly, until the other side goes."""

    data: bytes
    goes_on: bool = False

    @classmethod
    def of(
        cls,
        data: bytes,
        *,
        status: int = 200,
        length: int | str | None = None,
        more: Mapping[str, str] = NO_HEADERS,
        goes_on: bool = False,
    ) -> "Reply":
        """An answer of HTTP. `length`: what is announced, if not the truth; "" for nothing."""
        told = len(data) if length is None else length
        lines = [f"HTTP/1.1 {status} as asked", *(f"{key}: {value}" for key, value in more.items())]
        lines += [f"Content-Length: {told}"] if told != "" else []
        return cls("\r\n".join([*lines, "", ""]).encode() + data, goes_on)

    @classmethod
    def to(cls, url: str) -> "Reply":
        return cls.of(b"", status=302, more={"Location": url})

    @classmethod
    def endless(cls, length: int | None) -> "Reply":
        return cls.of(PIECE, length="" if length is None else length, goes_on=True)


class HostileServer(socketserver.ThreadingTCPServer):
    """`reply` is what the next requests get."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: Callable[[str], Reply] = lambda url: Reply.of(b"")
        self.url = f"http://127.0.0.1:{self.server_address[1]}/image"


class _Handler(socketserver.StreamRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        while self.rfile.readline().strip():  # the request's head
            pass
        reply = self.server.reply(self.server.url)
        try:
            self.wfile.write(reply.data)
            while reply.goes_on:
                self.wfile.write(PIECE)
                time.sleep(PIECE_S)
        except OSError:
            return  # it has heard enough


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
