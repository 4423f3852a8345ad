"""Connections for requests with a large body: patient while sending, and attentive to an early answer.

A server may refuse an upload before it has read it. Then the operator should see its answer, not the broken
pipe. Imported late: requests is slow to load.
"""

import errno
import select
import socket
import ssl
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# How long a server may take no byte of ours. (The time limit for connecting would hold for sending as well.)
STALL_S = 600.0
# While the server works on what it got nothing is sent; probes find out when its host has gone.
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
]
# A chunk is sent again after a break, so a break should be found soon: by bytes that nobody acknowledges.
GIVE_UP_CHUNK = [*KEEP_ALIVE, (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)]


def answered(error: OSError | None = None) -> BrokenPipeError:
    """What urllib3 takes as: stop sending, and read the answer."""
    return BrokenPipeError(errno.EPIPE, str(error or "the server has answered"))


def readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class PlainConnection(HTTPConnection):
    """HTTP. Whatever can be read before all is sent is the answer, or the end of the connection."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(STALL_S)

    def send(self, data: Any) -> None:
        if self.sock is not None and readable(self.sock):
            raise answered()
        try:
            super().send(data)
        except ConnectionResetError as error:
            raise answered(error) from error


class TlsConnection(HTTPSConnection):
    """HTTPS. What can be read may belong to TLS itself, so an early answer is found when sending fails."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(STALL_S)

    def send(self, data: Any) -> None:
        try:
            super().send(data)
        except (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise answered(error) from error


class PlainPool(HTTPConnectionPool):
    ConnectionCls = PlainConnection


class TlsPool(HTTPSConnectionPool):
    ConnectionCls = TlsConnection


class UploadAdapter(HTTPAdapter):
    """To be mounted on a session that is closed after the one request: its body may be half sent."""

    socket_options = KEEP_ALIVE

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        options = [*HTTPConnection.default_socket_options, *self.socket_options]
        super().init_poolmanager(*args, socket_options=options, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
        return manager


class ChunkAdapter(UploadAdapter):
    """For bodies that are one chunk of an upload each, as long as every one is taken whole."""

    socket_options = GIVE_UP_CHUNK
