"""Uploads by tus 1.0.0 (core, creation, checksum, termination): chunks with an offset and a SHA-256 each."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pvc.client import ApiClient, RawAnswer
from pvc.errors import CliError, Unreachable, error_from_answer

if TYPE_CHECKING:
    from requests import Session

    from pvc.upload_source import UploadSource

PATH = ("provisioner", "image", "upload")
VERSION = {"Tus-Resumable": "1.0.0"}
CHUNK_TYPE = "application/offset+octet-stream"
# Progress is shown after each piece of a chunk.
PIECE_BYTES = 128 * 1024
# A node may have to be asked before there is an answer.
ANSWER_TIMEOUT_S = 60.0
# Storing a chunk, decoded, may take a while.
CHUNK_TIMEOUT_S = 180.0
END_TIMEOUT_S = 15.0
CHECKSUM_MISMATCH = 460


class UploadGone(CliError):
    """The server does not know the upload any more."""


class ChunkRefused(CliError):
    """Nothing of the chunk was taken: it has another offset than the server wants, or came damaged."""


class ChunkTooLarge(CliError):
    """The server, or a proxy before it, takes smaller chunks only."""


@dataclass(frozen=True)
class Chunk:
    """What follows an offset of the file, and its SHA-256."""

    offset: int
    data: bytes
    sha256: bytes

    @classmethod
    def read(cls, source: "UploadSource", offset: int, limit: int) -> "Chunk":
        """Up to `limit` bytes. Raises CliError when the file is not what it was."""
        data = source.read_at(offset, limit)
        return cls(offset, data, hashlib.sha256(data).digest())


class ChunkBody:
    """One chunk, handed out in pieces; `advance` hears how many bytes were sent."""

    def __init__(self, chunk: bytes, advance: Callable[[int], None]) -> None:
        self._chunk = chunk
        self._advance = advance

    def __len__(self) -> int:
        return len(self._chunk)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._chunk), PIECE_BYTES):
            piece = self._chunk[start : start + PIECE_BYTES]
            yield piece
            self._advance(len(piece))


class TusUpload:
    """One upload on the server. Every method sends one request, and may be repeated after Unreachable."""

    def __init__(self, client: ApiClient, upload_id: str) -> None:
        self.id = upload_id
        self._client = client
        self._path = (*PATH, upload_id)

    def offset(self, size_bytes: int) -> int:
        """How many bytes the server has. Raises UploadGone, also when it is one of another length."""
        answer = self._client.exchange("HEAD", self._path, headers=VERSION, timeout_s=ANSWER_TIMEOUT_S)
        check(answer)
        if answer.headers.get("Upload-Length") != str(size_bytes):
            raise UploadGone("the upload is another one", kind="not-found", status=answer.status)
        return offset_in(answer, size_bytes)

    def send(self, session: "Session", chunk: Chunk, size_bytes: int, advance: Callable[[int], None]) -> int:
        """Send a chunk; the new offset. Raises ChunkRefused, ChunkTooLarge, UploadGone."""
        headers = {
            **VERSION,
            "Content-Type": CHUNK_TYPE,
            "Upload-Offset": str(chunk.offset),
            "Upload-Checksum": f"sha256 {base64.b64encode(chunk.sha256).decode()}",
        }
        body = ChunkBody(chunk.data, advance)
        answer = self._client.exchange(
            "PATCH", self._path, headers=headers, timeout_s=CHUNK_TIMEOUT_S, body=body, session=session
        )
        check(answer)
        return offset_in(answer, size_bytes)

    def end(self) -> None:
        """End the upload on the server; one that is gone already has ended."""
        answer = self._client.exchange("DELETE", self._path, headers=VERSION, timeout_s=END_TIMEOUT_S)
        try:
            check(answer)
        except UploadGone:
            pass


def create_upload(client: ApiClient, size_bytes: int, metadata: Mapping[str, str]) -> TusUpload:
    """Announce an upload. Not to be repeated blindly: when its answer is lost the name is taken."""
    headers = {**VERSION, "Upload-Length": str(size_bytes), "Upload-Metadata": encode_metadata(metadata)}
    answer = client.exchange("POST", PATH, headers=headers, timeout_s=ANSWER_TIMEOUT_S)
    check(answer, gone=CliError)
    # Only the id is taken: the key must not go to wherever an answer points.
    upload_id = unquote(urlsplit(answer.headers.get("Location", "")).path.rpartition("/")[2])
    if answer.status != 201 or upload_id in ("", ".", ".."):
        raise Unreachable(
            f"{client.connection.url} does not answer as tus wants it",
            why=f"status {answer.status}, Location {answer.headers.get('Location', 'missing')!r}",
        )
    return TusUpload(client, upload_id)


def encode_metadata(metadata: Mapping[str, str]) -> str:
    return ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}".rstrip() for key, value in metadata.items()
    )


def offset_in(answer: RawAnswer, size_bytes: int) -> int:
    text = answer.headers.get("Upload-Offset", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= size_bytes):
        raise Unreachable("the server's answer about the upload is not understood", why=f"offset {text!r}")
    return int(text)


def check(answer: RawAnswer, gone: type[CliError] = UploadGone) -> None:
    """Raise the error behind an answer that is no success."""
    if 200 <= answer.status < 300:
        return
    kinds: Mapping[int, type[CliError]] = {
        404: gone,
        410: gone,
        409: ChunkRefused,
        CHECKSUM_MISMATCH: ChunkRefused,
        413: ChunkTooLarge,
    }
    error = error_from_answer(answer.status, answer.data if isinstance(answer.data, dict) else {})
    raise kinds.get(answer.status, CliError)(
        error.what,
        why=error.why,
        hint=error.hint,
        kind=error.kind,
        problems=error.problems,
        status=error.status,
    )
