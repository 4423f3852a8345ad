"""A requests transport that calls a WSGI application instead of opening a socket."""

import io
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse
from werkzeug.wsgi import ClosingIterator


class ChunkedBody(io.RawIOBase):
    """Hands out the application's chunks one by one, so that streams arrive as they are made."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


class WsgiAdapter(BaseAdapter):
    """Mount it on a session: every request goes into `app`."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, stream: bool = False, **_: Any
    ) -> requests.Response:
        started: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
            started.update(status=status, headers=headers)
            return lambda _: None

        body = ClosingIterator(self.app(environ_of(request), start_response))
        chunks = iter(body)
        first = next(chunks, b"")
        content: Any
        if stream:
            content = ChunkedBody(iter_with_first(first, chunks))
        else:
            content = io.BytesIO(first + b"".join(chunks))
        return response_of(request, started, content)

    def close(self) -> None:
        """Nothing is open."""


def iter_with_first(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def environ_of(request: requests.PreparedRequest) -> dict[str, Any]:
    parts = urlsplit(request.url or "")
    body: Any = request.body or b""
    data = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else b"".join(body)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        # As gunicorn does it: the path is decoded, what was sent stands in RAW_URI.
        "PATH_INFO": unquote(parts.path, "latin-1"),
        "RAW_URI": parts.path,
        "QUERY_STRING": parts.query,
        "SERVER_NAME": parts.hostname,
        "SERVER_PORT": str(parts.port or 80),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(data),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ


def response_of(
    request: requests.PreparedRequest, started: Mapping[str, Any], content: Any
) -> requests.Response:
    code, _, reason = started["status"].partition(" ")
    raw = HTTPResponse(
        body=content, headers=dict(started["headers"]), status=int(code), reason=reason, preload_content=False
    )
    response = requests.Response()
    response.status_code, response.reason, response.raw = int(code), reason, raw
    response.headers.update(dict(started["headers"]))
    response.request, response.url = request, request.url or ""
    response.encoding = "utf-8"
    return response
