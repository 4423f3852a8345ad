"""Uploads in chunks that may come over many connections: the bytes of one import, put together in order.

A chunk counts when all of it is here and its checksum is right; until then it is kept in memory. An upload
lives as long as the process that has it: after a restart the client begins anew.
"""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from typing import Final

from pvccommon.errors import NotFound, PvcError, TimedOut, WrongInput
from pvccommon.models import Json
from pvccommon.transfer import Channel, Receiver
from pvcnoded.imports.imports import ImageImport

CHUNK_BYTES: Final = 16 * 1024**2  # the largest; two of an upload are in memory, and those on their way
ROOM_S: Final = 600.0  # an import that takes nothing for so long is given up
FINISH_S: Final = 10.0  # after the last chunk, a verdict so soon is told in its answer
CHECKSUMS: Final = ("sha256", "sha1")


class ChunkStream:
    """Chunks as one stream: `put` waits until the one before has been begun to be read."""

    def __init__(self, what: str, size_bytes: int, idle_s: float, on_idle: Callable[[], None]) -> None:
        self.size_bytes = size_bytes
        self.offset = 0  # bytes taken
        self._what = what
        self._idle_s = idle_s
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._waiting: bytearray | None = None
        self._current = memoryview(bytearray())
        self._error: PvcError | None = None
        self._heard = time.monotonic()

    def touch(self) -> None:
        """The uploader lives."""
        self._heard = time.monotonic()

    def put(self, offset: int, chunk: bytearray) -> bool:
        """Take a chunk; False when another offset is wanted. Raises what has ended the stream."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting is None or self._error, ROOM_S):
                self._error = TimedOut(self._what, f"nothing was stored for {ROOM_S:g} s")
                self._changed.notify_all()
            if self._error:
                raise self._error
            if offset != self.offset:
                return False
            if chunk:
                self._waiting = chunk
                self.offset += len(chunk)
            self.touch()
            self._changed.notify_all()
            return True

    def stop(self, error: PvcError) -> None:
        """Reading and putting raise this from now on."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def read(self, size: int, /) -> bytes:
        """The next bytes, empty at the end; raises TimedOut when no chunk comes."""
        with self._changed:
            while not self._current and self._waiting is None and not self._error:
                if self.offset == self.size_bytes:
                    return b""
                left_s = self._heard + self._idle_s - time.monotonic()
                if left_s <= 0:
                    self._on_idle()
                    self._error = TimedOut(self._what, f"no chunk came for {self._idle_s:g} s")
                else:
                    self._changed.wait(left_s)
            if self._error:
                raise self._error
            if not self._current:
                self._current, self._waiting = memoryview(self._waiting or bytearray()), None
                self._changed.notify_all()
        piece, self._current = self._current[:size], self._current[size:]
        return bytes(piece)


class UploadSession:
    """One upload and its import."""

    def __init__(self, begun: ImageImport, token: str, idle_s: float) -> None:
        request = begun.request
        self.image_id = begun.image_id
        self.what = f"upload image {request.name}"
        self._token = token
        self._import = begun
        self._stream = ChunkStream(self.what, request.size_bytes, idle_s, begun.forget_failure)
        # Nobody waits for the verdict on an upload that was left.
        self._stop = TimedOut(self.what, "its import has ended")
        begun.start(self._stream, lambda: self._stream.stop(self._stop))

    @property
    def is_over(self) -> bool:
        return self._import.ended.is_set()

    @property
    def offset(self) -> int:
        return self._stream.offset

    def check_token(self, token: str) -> None:
        if not hmac.compare_digest(self._token, token):
            raise no_upload(self.image_id)

    def state(self) -> Json:
        """{offset, size_bytes}."""
        return {"offset": self.offset, "size_bytes": self._stream.size_bytes}

    def verdict(self) -> Json | None:
        """{failed: error} when the import has failed."""
        error = self._import.error
        if error is None:
            return None
        self._import.ended.wait(FINISH_S)
        return {"failed": error.to_dict(), **self.state()}

    def check(self, offset: int) -> Json | None:
        """Why a chunk at this offset would be refused: {failed} or {refused}."""
        return self.verdict() or self._refusal("offset", offset != self.offset)

    def take(self, channel: Channel, offset: int, checksum: tuple[str, str] | None) -> Json:
        """Receive one chunk: {offset}, or {refused: "offset" or "checksum", offset}, or {failed: error}.

        `checksum`: algorithm and hexadecimal digest. Raises WrongInput for one that is too long.
        """
        algorithm, digest = checksum or (None, "")
        chunk, found = self._receive(channel, algorithm)
        if not hmac.compare_digest(found, digest.lower()):
            return self.state() | {"refused": "checksum"}
        if offset + len(chunk) > self._stream.size_bytes:
            raise WrongInput(self.what, f"there is more than the {self._stream.size_bytes} bytes announced")
        try:
            taken = self._stream.put(offset, chunk)
        except PvcError:
            self._import.ended.wait(FINISH_S)
            verdict = self.verdict()
            if verdict is None:
                raise
            return verdict
        if taken and self.offset == self._stream.size_bytes:
            self._import.ended.wait(FINISH_S)
        return self.verdict() or (self.state() if taken else self.state() | {"refused": "offset"})

    def _receive(self, channel: Channel, algorithm: str | None) -> tuple[bytearray, str]:
        """(The chunk, its digest), computed while the chunk comes; no digest without an algorithm."""
        chunk = bytearray()
        digest = hashlib.new(algorithm) if algorithm else None
        for piece in Receiver(channel).pieces():
            self._stream.touch()
            chunk += piece
            if len(chunk) > CHUNK_BYTES:
                raise WrongInput(self.what, f"a chunk has more than {CHUNK_BYTES} bytes")
            if digest:
                digest.update(piece)
        return chunk, digest.hexdigest() if digest else ""

    def _refusal(self, why: str, refused: bool) -> Json | None:
        return self.state() | {"refused": why} if refused else None


def no_upload(image_id: int) -> NotFound:
    return NotFound(f"find upload {image_id}", "there is no such upload, or it has ended", "begin anew")
