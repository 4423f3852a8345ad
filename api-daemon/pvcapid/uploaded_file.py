"""The one file of a multipart body, as it comes: nothing of it is kept in memory or on disk.

Werkzeug's form parser would write it to disk first; its decoder does not.
"""

from collections.abc import Iterator

from flask import Request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, File, MultipartDecoder, NeedData, Preamble

from pvccommon.errors import WrongInput

MULTIPART = "multipart/form-data"
FIELD = "file"
CHUNK_BYTES = 256 * 1024
BUFFER_BYTES = 4 * CHUNK_BYTES  # what the decoder may hold back, headers of the part included


class UploadedFile:
    """Reads a request's body up to the file's content; `pieces` goes on from there.

    Raises WrongInput when the body is not such a one, or breaks off.
    """

    def __init__(self, incoming: Request) -> None:
        self._stream = incoming.stream
        self._what = f"{incoming.method} {incoming.path}"
        boundary = incoming.mimetype_params.get("boundary") or ""
        if incoming.mimetype != MULTIPART or not 0 < len(boundary) <= 200 or not boundary.isascii():
            raise self._wrong(f"its body must be {MULTIPART} with one part named {FIELD!r}")
        self._decoder = MultipartDecoder(boundary.encode(), BUFFER_BYTES)
        self._tail_bytes = len(boundary) + 8  # CR LF "--" boundary "--" CR LF
        self._received_bytes = 0
        if not isinstance(self._next(), Preamble):
            raise self._wrong("its body is not multipart")
        part = self._next()
        if not isinstance(part, File) or part.name != FIELD:
            raise self._wrong(f"the first part of its body must be a file named {FIELD!r}")
        head_bytes = self._received_bytes - len(self._decoder.buffer)
        self.size_bytes = self._size(incoming.content_length, head_bytes)

    def pieces(self) -> Iterator[bytes]:
        """The content; raises WrongInput when something follows it."""
        more = True
        while more:
            event = self._next()
            if not isinstance(event, Data):
                raise self._wrong("its body is malformed")
            if event.data:
                yield bytes(event.data)
            more = event.more_data
        if not isinstance(self._next(), Epilogue):
            raise self._wrong(f"its body must have one part only, {FIELD!r}")

    def _size(self, body_bytes: int | None, head_bytes: int) -> int | None:
        """What the file has if the body ends as all clients end it; None for a body of unknown length."""
        return None if body_bytes is None else max(0, body_bytes - head_bytes - self._tail_bytes)

    def _next(self) -> Event:
        try:
            while isinstance(event := self._decoder.next_event(), NeedData):
                self._feed()
        except (ValueError, RequestEntityTooLarge) as exc:
            raise self._wrong("its body is malformed, or breaks off") from exc
        return event

    def _feed(self) -> None:
        try:
            chunk = self._stream.read(CHUNK_BYTES)
        except TimeoutError as exc:
            raise self._wrong("next to nothing of its body came for too long") from exc
        except (OSError, ClientDisconnected) as exc:
            raise self._wrong("the caller went away before everything had come") from exc
        self._received_bytes += len(chunk)
        self._decoder.receive_data(chunk or None)

    def _wrong(self, why: str) -> WrongInput:
        return WrongInput(self._what, why)
