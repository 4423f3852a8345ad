"""An HTTP server on loopback that takes images by tus, and breaks in the ways an upload must survive."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PREFIX = "/api/v1/provisioner/image"
RECEIVE_BYTES = 64 * 1024


@dataclass
class Upload:
    """What has arrived of one upload; only its hash is kept."""

    length: int
    metadata: dict[str, str]
    offset: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)


@dataclass
class TusApi:
    """The state of the server. Faults are set by the test, and happen once each."""

    url: str = ""
    uploads: dict[str, Upload] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    chunk_sizes: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    serial: int = 0
    # Faults
    cut_at: list[int] = field(default_factory=list)  # break the connection when this byte has arrived
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # to PATCH, nothing taken
    begin_answers: list[tuple[int, dict[str, Any]] | None] = field(default_factory=list)  # None: it is lost
    drop_answers: int = 0  # chunks that are taken, whose answer is lost
    lose_at: list[int] = field(default_factory=list)  # forget all when this much is there
    lose_answer: tuple[int, dict[str, Any]] | None = None  # to the chunk with which all is forgotten
    lost_rest: int = 0  # how often the row of an upload that is lost is still seen
    offset_answers: list[int] = field(default_factory=list)  # to HEAD
    largest_chunk: int | None = None
    hold_at: int | None = None  # take no more from here until `go_on` is set
    discard_held: bool = False  # what the kernel still has of a client that is dead counts for nothing
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    # The end of an image
    polls_until_ready: int = 2
    end_state: dict[str, Any] = field(default_factory=lambda: {"state": "ready", "percent": 100})
    forget_complete: bool = False
    no_hash: bool = False

    def count(self, method: str) -> int:
        return sum(request.startswith(method + " ") for request in self.requests)

    def lose_all(self) -> None:
        """What a server does that keeps uploads in memory and is restarted."""
        self.uploads.clear()
        if not self.lost_rest:
            self.images.clear()

    def begin(self, length: int, metadata: dict[str, str]) -> tuple[int, dict[str, Any], dict[str, str]]:
        name = metadata["name"]
        if name in self.images:
            return 409, {"message": f"the image {name} exists", "kind": "exists"}, {}
        self.serial += 1
        upload_id = f"u{self.serial}"
        self.uploads[upload_id] = Upload(length, metadata)
        self.metadata.append(metadata)
        self.images[name] = {
            "name": name,
            "state": "importing",
            "percent": 0,
            "source": "upload",
            "size_bytes": length,
            "pool": metadata["pool"],
            "format": metadata["format"],
            "created": f"stamp {self.serial}",
            "warnings": ["no manifest\x1b[31m"],
        }
        self.complete(upload_id)
        return 201, {}, {"Location": f"http://elsewhere.test{PREFIX}/upload/{upload_id}"}

    def complete(self, upload_id: str) -> None:
        upload = self.uploads[upload_id]
        if upload.offset == upload.length:
            self.images[upload.metadata["name"]]["sha256"] = upload.sha256.hexdigest()
            if self.forget_complete:
                del self.uploads[upload_id]

    def image(self, name: str) -> dict[str, Any]:
        image = self.images[name]
        if "sha256" in image and image["state"] == "importing":
            self.polls_until_ready -= 1
            image["percent"] = 50
            if self.polls_until_ready <= 0:
                image.update(self.end_state)
        return image


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: TusApi

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = b"" if content is None or self.command == "HEAD" else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Tus-Resumable": "1.0.0", **(headers or {})}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()
            return
        self.close_connection = True

    def upload(self) -> tuple[str, Upload | None]:
        self.api.requests.append(f"{self.command} {self.path.removeprefix('/api/v1/provisioner')}")
        self.api.keys.add(self.headers.get("X-Api-Key", ""))
        upload_id = self.path.removeprefix(PREFIX + "/upload/")
        upload = self.api.uploads.get(upload_id)
        if upload is None and self.path != PREFIX + "/upload":
            self.close_connection = True
            self.answer(404, {"message": "there is no such upload", "kind": "not-found"})
        return upload_id, upload

    def do_GET(self) -> None:
        self.api.requests.append(f"GET {self.path.removeprefix('/api/v1/provisioner')}")
        name = self.path.removeprefix(PREFIX + "/")
        if self.api.lost_rest and not self.api.uploads:
            self.api.lost_rest -= 1
            self.answer(200, [self.api.images[name]])
            self.api.lose_all()
        elif name in self.api.images:
            self.answer(200, [self.api.image(name)])
        else:
            self.answer(404, {"message": f"there is no image {name}", "kind": "not-found"})

    def do_POST(self) -> None:
        self.upload()
        pairs = (pair.partition(" ") for pair in self.headers["Upload-Metadata"].split(","))
        metadata = {key: base64.b64decode(value, validate=True).decode() for key, _, value in pairs}
        refusal: Any = self.api.begin_answers.pop(0) if self.api.begin_answers and self.api.serial else ()
        if refusal:
            self.answer(*refusal)
            return
        answer = self.api.begin(int(self.headers["Upload-Length"]), metadata)
        if refusal is None:
            self.break_off()
        else:
            self.answer(*answer)

    def do_HEAD(self) -> None:
        if self.api.offset_answers:
            self.answer(self.api.offset_answers.pop(0))
            return
        _, upload = self.upload()
        if upload is not None:
            self.answer(200, None, {"Upload-Offset": str(upload.offset), "Upload-Length": str(upload.length)})

    def do_DELETE(self) -> None:
        name = self.path.removeprefix(PREFIX + "/")
        if name in self.api.images:
            self.api.requests.append(f"DELETE /image/{name}")
            del self.api.images[name]
            self.answer(200, {"message": "Removed."})
            return
        upload_id, upload = self.upload()
        if upload is not None:
            del self.api.uploads[upload_id]
            self.api.images.pop(upload.metadata["name"], None)
            self.answer(204)

    def do_PATCH(self) -> None:
        upload_id, upload = self.upload()
        if upload is None:
            return
        assert self.headers["Content-Type"] == "application/offset+octet-stream"
        length = int(self.headers["Content-Length"])
        if self.api.largest_chunk is not None and length > self.api.largest_chunk:
            self.close_connection = True
            self.answer(413, None)
            return
        chunk = self.receive(upload.offset, length)
        if chunk is not None:
            self.take(upload_id, upload, chunk)

    def receive(self, offset: int, length: int) -> "Chunk | None":
        """The chunk, or None when the connection is to be broken in it."""
        chunk = Chunk(self.api.no_hash)
        cuts = [cut for cut in self.api.cut_at if offset <= cut < offset + length]
        wanted = cuts[0] - offset if cuts else length
        while chunk.length < wanted:
            data = self.rfile.read(min(RECEIVE_BYTES, wanted - chunk.length))
            if not data:
                self.close_connection = True
                return None
            chunk.add(data)
            if self.api.hold_at is not None and offset + chunk.length >= self.api.hold_at:
                self.api.held.set()
                self.api.go_on.wait(30)
                if self.api.discard_held:
                    self.close_connection = True
                    return None
        if cuts:
            self.api.cut_at.remove(cuts[0])
            self.break_off()
            return None
        return chunk

    def take(self, upload_id: str, upload: Upload, chunk: "Chunk") -> None:
        if upload_id not in self.api.uploads:
            self.answer(404, {"message": "gone"})
        elif self.api.answers:
            self.answer(*self.api.answers.pop(0))
        elif int(self.headers["Upload-Offset"]) != upload.offset:
            self.answer(409, {"message": f"the upload is at {upload.offset}", "kind": "wrong-state"})
        elif not chunk.matches(self.headers["Upload-Checksum"]):
            self.answer(460, {"message": "the checksum is another", "kind": "wrong-input"})
        else:
            self.store(upload_id, upload, chunk)

    def store(self, upload_id: str, upload: Upload, chunk: "Chunk") -> None:
        self.api.chunk_sizes.append(chunk.length)
        upload.offset += chunk.length
        for data in chunk.pieces:
            upload.sha256.update(data)
        if self.api.lose_at and upload.offset >= self.api.lose_at[0]:
            self.api.lose_at.pop(0)
            self.api.lose_all()
            if self.api.lose_answer:
                self.answer(*self.api.lose_answer)
            else:
                self.break_off()
            return
        self.api.complete(upload_id)
        if self.api.drop_answers:
            self.api.drop_answers -= 1
            self.break_off()
        else:
            self.answer(204, None, {"Upload-Offset": str(upload.offset)})

    def break_off(self) -> None:
        """No answer, and the client sees it at once."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Chunk:
    """A chunk while it arrives."""

    def __init__(self, no_hash: bool) -> None:
        self.length = 0
        self.pieces: list[bytes] = []
        self._no_hash = no_hash
        self._sha256 = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.length += len(data)
        if not self._no_hash:
            self.pieces.append(data)
            self._sha256.update(data)

    def matches(self, checksum: str) -> bool:
        algorithm, _, value = checksum.partition(" ")
        assert algorithm == "sha256"
        return self._no_hash or base64.b64decode(value) == self._sha256.digest()


@contextlib.contextmanager
def tus_api() -> Iterator[TusApi]:
    api = TusApi()
    handler = type("BoundHandler", (Handler,), {"api": api})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        api.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield api
        finally:
            api.go_on.set()
            server.shutdown()
            thread.join(10)
