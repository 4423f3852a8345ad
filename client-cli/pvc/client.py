"""The HTTP side: one object that knows base URL, key, time limits, retries and how answers fail."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pvc.connections import API_PREFIX, Connection
from pvc.errors import CliError, Unreachable, WrongInput, error_from_answer
from pvc.version import VERSION

if TYPE_CHECKING:
    from requests import Response, Session
    from requests.adapters import BaseAdapter

    from pvc.multipart import FileBody
    from pvc.tus import ChunkBody

Value = str | int | bool | float | None | Sequence[str]
Params = Mapping[str, Value]

CONNECT_TIMEOUT_S = 2.0
# Some changes answer only when the work is done (`wait`), so reading waits long.
READ_TIMEOUT_S = 3600.0
# The server sends something at least every 15 s while a log is followed.
STREAM_TIMEOUT_S = 45.0
# Storing an uploaded image, perhaps converting it, takes as long as its size wants.
UPLOAD_TIMEOUT_S = 48 * 3600.0
DOWNLOAD_TIMEOUT_S = 600.0
DOWNLOAD_CHUNK_BYTES = 1 << 20
GET_PAUSES_S = (0.2, 0.8)
RETRIED_STATUS = (502, 503, 504)


@dataclass(frozen=True)
class Reply:
    """A successful answer. `data` is the decoded JSON."""

    status: int
    data: Any

    @property
    def message(self) -> str:
        """The text of a change's answer; empty when the server sent none."""
        return str(self.data.get("message") or "") if isinstance(self.data, dict) else ""


@dataclass(frozen=True)
class RawAnswer:
    """An answer of any status. `data` is None when it is no JSON."""

    status: int
    headers: Mapping[str, str]
    data: Any


@dataclass(frozen=True)
class Download:
    """A body while it comes. `chunks` raises Unreachable unless `size_bytes` arrive."""

    size_bytes: int
    chunks: Iterator[bytes]


def api_path(segments: Sequence[str]) -> str:
    """The URL path of the segments, each quoted whole: a `/` in a name stays inside its segment."""
    for segment in segments:
        # URL normalisation would resolve dots to another resource, and an empty name to the list.
        if segment in ("", ".", ".."):
            raise WrongInput(f"{segment!r} is not a name")
    return API_PREFIX + "".join("/" + quote(segment, safe="") for segment in segments)


def encode_params(params: Params | None) -> list[tuple[str, str]]:
    """Wire form: no value sends nothing, sequences repeat the key, booleans are `True` and `False`."""
    pairs: list[tuple[str, str]] = []
    for key, value in (params or {}).items():
        if value is None:
            continue
        if isinstance(value, (str, int, float)):
            pairs.append((key, str(value)))
        else:
            pairs.extend((key, str(item)) for item in value)
    return pairs


class ApiClient:
    """Requests to one API server.

    GET is repeated on connection errors and 502, 503, 504; changes are sent once. `transport` replaces the
    network (tests hand in a WSGI transport), `debug` receives one line per request and answer.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        debug: Callable[[str], None] | None = None,
        transport: "BaseAdapter | None" = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.connection = connection
        self._debug = debug or (lambda _: None)
        self._transport = transport
        self._sleep = sleep
        self._open_session: Session | None = None

    def close(self) -> None:
        """Close the connections that were kept for the next request."""
        if self._open_session is not None:
            self._open_session.close()
            self._open_session = None

    def get(self, *path: str, query: Params | None = None) -> Any:
        return self.request("GET", path, query=query).data

    def get_list(self, *path: str, query: Params | None = None) -> list[dict[str, Any]]:
        """A list resource. Servers say "nothing found" with an empty array, or with 404 and a message."""
        try:
            data = self.get(*path, query=query)
        except CliError as error:
            if error.status == 404:
                return []
            raise
        return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []

    def get_one(self, *path: str, query: Params | None = None) -> dict[str, Any]:
        """An element resource: the API answers with an array of one (or the element itself)."""
        data = self.get(*path, query=query)
        if isinstance(data, list):
            data = data[0] if data else None
        if not isinstance(data, dict):
            raise CliError(f"there is no {path[-1]!r}", kind="not-found")
        return data

    def post(self, *path: str, form: Params | None = None, query: Params | None = None) -> Reply:
        """Values that may be secret travel in the body (`form`): URLs end up in logs."""
        return self.request("POST", path, query=query, form=form)

    def put(
        self, *path: str, form: Params | None = None, json: Any = None, query: Params | None = None
    ) -> Reply:
        return self.request("PUT", path, query=query, form=form, json=json)

    def delete(self, *path: str, query: Params | None = None) -> Reply:
        return self.request("DELETE", path, query=query)

    def request(
        self,
        method: str,
        path: Sequence[str],
        *,
        query: Params | None = None,
        form: Params | None = None,
        json: Any = None,
    ) -> Reply:
        """One API call. Raises CliError for every answer that is not a success and for no answer at all."""
        response = self._send(method, api_path(path), query=query, form=form, json=json)
        with response:
            return self._reply(response)

    @contextmanager
    def stream(self, *path: str, query: Params | None = None) -> Iterator[Iterator[bytes]]:
        """The body of a server-sent event stream as lines without their ends.

        Raises Unreachable when the answer is no event stream, and while reading when the connection breaks.
        """
        import requests

        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        response = self._send(
            "GET", api_path(path), query=query, headers=headers, stream=True, timeout_s=STREAM_TIMEOUT_S
        )
        with response:
            kind = response.headers.get("Content-Type", "")
            if response.status_code != 200 or not kind.startswith("text/event-stream"):
                raise Unreachable(f"{self.connection.url} offers no event stream")
            try:
                # Chunks are handed on as they come. Without chunks only a read of one byte returns at once.
                chunked = "chunked" in response.headers.get("Transfer-Encoding", "")
                yield split_lines(response.iter_content(chunk_size=None if chunked else 1))
            except requests.RequestException as error:
                raise Unreachable("the event stream broke", why=reason_of(error)) from error

    def upload(self, *path: str, body: "FileBody", query: Params | None = None) -> Reply:
        """POST a file while it is read. An answer that comes before all is sent counts."""
        from pvc.upload_connection import UploadAdapter

        with (
            self._new_session(self._transport or UploadAdapter()) as session,
            self._send(
                "POST",
                api_path(path),
                query=query,
                body=body,
                headers={"Content-Type": body.content_type},
                session=session,
                timeout_s=UPLOAD_TIMEOUT_S,
            ) as response,
        ):
            return self._reply(response)

    @contextmanager
    def chunk_session(self) -> Iterator["Session"]:
        """Connections for `exchange` of large bodies. Not to be used after an answer that came early."""
        from pvc.upload_connection import ChunkAdapter

        with self._new_session(self._transport or ChunkAdapter()) as session:
            yield session

    def exchange(
        self,
        method: str,
        path: Sequence[str],
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        body: "ChunkBody | None" = None,
        session: "Session | None" = None,
    ) -> RawAnswer:
        """One request, tried once, whose answer's status and headers matter. Raises Unreachable for none."""
        response = self._send(
            method, api_path(path), body=body, headers=headers, session=session, timeout_s=timeout_s
        )
        with response:
            try:
                data = response.json() if response.content else None
            except ValueError:
                data = None
            return RawAnswer(response.status_code, response.headers, data)

    @contextmanager
    def download(self, *path: str, query: Params | None = None) -> Iterator[Download]:
        """A large binary body while it comes. Raises Unreachable when the answer is something else."""
        headers = {"Accept": "application/octet-stream, application/json", "Accept-Encoding": "identity"}
        with (
            self._new_session(self._transport) as session,
            self._send(
                "GET",
                api_path(path),
                query=query,
                headers=headers,
                stream=True,
                session=session,
                timeout_s=DOWNLOAD_TIMEOUT_S,
            ) as response,
        ):
            if response.status_code != 200:
                self._reply(response)
            length = response.headers.get("Content-Length", "")
            kind = response.headers.get("Content-Type", "")
            if not (kind.startswith("application/octet-stream") and length.isdecimal()):
                raise Unreachable(
                    f"{self.connection.url} offers no download", why=f"it sends {kind or 'no type'}"
                )
            yield Download(int(length), whole_chunks(response, int(length)))

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Params | None = None,
        form: Params | None = None,
        json: Any = None,
        body: "FileBody | ChunkBody | None" = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        session: "Session | None" = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> "Response":
        import requests

        url = self.connection.url + path
        # A stream's caller has its own way to go on (polling), so it is tried once.
        pauses = GET_PAUSES_S if method == "GET" and not stream else ()
        for attempt in range(len(pauses) + 1):
            last = attempt == len(pauses)
            try:
                response = (session or self._session()).request(
                    method,
                    url,
                    params=encode_params(query),
                    data=body if form is None else encode_params(form),
                    json=json,
                    headers=dict(headers or {}),
                    timeout=(CONNECT_TIMEOUT_S, timeout_s),
                    allow_redirects=False,
                    verify=self.connection.verify,
                    stream=stream,
                )
            except requests.RequestException as error:
                self._debug(f"{method} {url}: {error}")
                if last or not isinstance(error, requests.ConnectionError):
                    raise no_answer(self.connection, error) from error
            else:
                self._debug(f"{method} {response.url}: {response.status_code} {dict(response.headers)}")
                if last or response.status_code not in RETRIED_STATUS:
                    return response
                response.close()
            self._sleep(pauses[attempt])
        raise AssertionError("unreachable")

    def _session(self) -> "Session":
        if self._open_session is None:
            self._open_session = self._new_session(self._transport)
        return self._open_session

    def _new_session(self, transport: "BaseAdapter | None") -> "Session":
        import requests

        session = requests.Session()
        session.headers["User-Agent"] = f"pvc-client-cli/{VERSION}"
        session.headers["Accept"] = "application/json"
        self._set_key(session)
        if self.connection.host in ("127.0.0.1", "::1", "localhost"):
            # A proxy meant for the outside would not reach our own loopback.
            session.trust_env = False
        if not self.connection.verify:
            requests.packages.urllib3.disable_warnings()  # type: ignore[attr-defined]
        if transport is not None:
            session.mount("http://", transport)
            session.mount("https://", transport)
        return session

    def _set_key(self, session: "Session") -> None:
        key = self.connection.api_key.strip()
        if not key:
            return
        if not (key.isascii() and key.isprintable()):
            raise WrongInput(f"the API key of connection {self.connection.name!r} has characters no key has")
        session.headers["X-Api-Key"] = key

    def _reply(self, response: "Response") -> Reply:
        status = response.status_code
        if 300 <= status < 400:
            raise Unreachable(
                f"{self.connection.url} redirects",
                why=f"status {status} to {response.headers.get('Location', 'nowhere')}",
                hint="put the final address (https, port) into the connection",
            )
        try:
            data = response.json()
        except ValueError as error:
            raise not_json(self.connection, response) from error
        if 200 <= status < 300:
            return Reply(status, data)
        raise error_from_answer(
            status, data if isinstance(data, dict) else {"message": str(data)}, self._hint(status)
        )

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return f"check the API key of the connection {self.connection.name!r} and its role"
        return ""


def whole_chunks(response: "Response", size_bytes: int) -> Iterator[bytes]:
    """The body as it comes. Raises Unreachable when it ends early, which the library need not notice."""
    import requests

    received = 0
    why = ""
    try:
        for chunk in response.iter_content(chunk_size=DOWNLOAD_CHUNK_BYTES):
            received += len(chunk)
            yield chunk
    except requests.RequestException as error:
        why = f" ({reason_of(error)})"
    if received != size_bytes:
        raise Unreachable("the download broke off", why=f"{received} of {size_bytes} bytes came{why}")


def split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines as soon as they are complete, whatever the chunks' borders."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")


def not_json(connection: Connection, response: "Response") -> CliError:
    """The error for HTML pages of proxies, empty bodies and other servers' answers."""
    kind = response.headers.get("Content-Type", "").partition(";")[0] or "unknown type"
    body = "an empty body" if not response.content else f"{kind} instead of JSON"
    return Unreachable(
        f"{connection.url} does not answer like a PVC API",
        why=f"status {response.status_code} with {body}",
        hint=f"check address, port and scheme of the connection {connection.name!r}, and any proxy between",
    )


def no_answer(connection: Connection, error: Exception) -> CliError:
    """The error for a connection that could not be made, or broke."""
    reason = reason_of(error)
    if "certificate" in reason:
        hint = "install the certificate's authority, or set PVC_CLIENT_VERIFY_SSL=False to trust it blindly"
    else:
        hint = f"is the API running there? the address is that of the connection {connection.name!r}"
    return Unreachable(f"cannot reach the API at {connection.url}", why=reason, hint=hint)


def reason_of(error: BaseException) -> str:
    """The innermost cause in a few words; requests wraps it three times."""
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, requests.ReadTimeout):
        return "no answer in time"
    cause: BaseException | None = error
    reason = ""
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException):
            reason = getattr(cause, "verify_message", "") or cause.strerror or str(cause)
            if "CERTIFICATE" in str(cause):
                reason = f"certificate not trusted ({reason})"
        cause = cause.__cause__ or cause.__context__
    return reason or " ".join(str(error).split())[:200] or type(error).__name__


def debug_to_stderr(text: str) -> None:
    """Sink of `--debug`. The key travels in a request header, which is never printed."""
    print(f"debug: {text}", file=sys.stderr)
