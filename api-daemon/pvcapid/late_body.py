"""Bodies that have not come yet when the application begins: waiting for them always has an end."""

import time
from typing import Any

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.unreader import SocketUnreader

# In a WSGI environment: the body, when it is such a one.
LATE_BODY = "pvcapid.late_body"
IDLE_S = 10.0
WHOLE_S = 60.0
PIECE_BYTES = 256 * 1024
MOST_ENDS = 8


class Patience(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """What gunicorn reads a connection through. Raises TimeoutError for a slow caller, then always."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._ends_met = 0
        self.begin()

    def begin(self) -> None:
        """A new request: its limits are the usual ones."""
        self.limit(IDLE_S, WHOLE_S)

    def limit(self, idle_s: float, read_s: float) -> None:
        """At most so long between two pieces of the network, and until what is asked for has come."""
        self._idle_s, self._read_s = idle_s, read_s
        self.begin_read()

    def begin_read(self) -> None:
        self._deadline = time.monotonic() + self._read_s

    def chunk(self) -> bytes:
        left_s = min(self._idle_s, self._deadline - time.monotonic())
        if left_s <= 0:
            self._idle_s = 0
            raise TimeoutError("the caller sends too slowly")
        for_sending_s = self.sock.gettimeout()
        self.sock.settimeout(left_s)
        try:
            data: bytes = self.sock.recv(self.mxchunk)
        except TimeoutError:
            self._idle_s = 0
            raise
        finally:
            self.sock.settimeout(for_sending_s)
        # gunicorn would look for the end of a chunk for ever.
        self._ends_met += not data
        if self._ends_met > MOST_ENDS:
            raise ConnectionResetError("the caller has gone")
        return data

    def buffered_bytes(self) -> int:
        return int(self.buf.getbuffer().nbytes)

    def take_buffered(self) -> bytes:
        """What has been received and not been read."""
        return bytes(self.read()) if self.buffered_bytes() else b""


class LateBody:
    """A body in large pieces: what gunicorn puts around its reader takes 1 KiB, and 8 KiB from the socket."""

    def __init__(self, reader: Any, patience: Patience) -> None:
        self._reader = reader
        self._patience = patience
        patience.mxchunk = PIECE_BYTES

    def read(self, size: int) -> bytes:
        self._patience.begin_read()
        data: bytes = self._reader.read(size)
        return data

    def limit(self, seconds: float) -> None:
        """What is asked for at one time may take so long."""
        self._patience.limit(seconds, seconds)


def has_come(reader: Any) -> bool:
    """Whether gunicorn's reader of a body can read it without waiting."""
    return isinstance(reader, LengthReader) and reader.length <= reader.unreader.buffered_bytes()


def is_read(reader: Any) -> bool:
    """Whether nothing of a body is left on the connection."""
    if isinstance(reader, LengthReader):
        return bool(reader.length == 0)
    return isinstance(reader, ChunkedReader) and reader.parser is None
