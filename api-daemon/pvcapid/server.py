"""The web server: gunicorn with threads, set up from our configuration."""

import functools
import json
import logging
import socket
from typing import Any
from urllib.parse import quote

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from pvcapid.app import create_app
from pvcapid.parameters import MAX_BODY_BYTES
from pvcapid.services import EXTENSION
from pvcapid.uploaded_file import MULTIPART
from pvccommon.config import Config

# Without query strings: existing clients put everything into them.
ACCESS_LOG = '%(h)s "%(m)s %(U)s %(H)s" %(s)s %(B)s bytes %(L)s s'
GRACE_S = 15
KEEP_ALIVE_S = 5
IDLE_WORKER_S = 60
PIECE_BYTES = 256 * 1024
MAX_REQUEST_LINE = 8190  # the most gunicorn takes; longer requests belong into a body


class JsonErrorWorker(ThreadWorker):  # type: ignore[misc]
    """Requests that never reach the application are answered in JSON, too."""

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        self.log.debug("invalid request from %s: %s", addr, exc)
        body = json.dumps({"message": "the request is malformed, or its line or headers are too long"})
        head = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
        try:
            util.write_nonblock(client, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        except OSError:
            self.log.debug("the client is gone")


class QuotedLogger(Logger):  # type: ignore[misc]
    """An access log whose lines cannot be broken up by what a path holds."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        atoms: dict[str, Any] = super().atoms(resp, req, environ, request_time)
        atoms["U"] = quote(str(environ.get("PATH_INFO", "")).encode("latin-1", "replace"))[:1024]
        return atoms


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn's application. `load` runs in each worker after the fork, so no connection is shared."""

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__()

    def load_config(self) -> None:
        for key, value in settings(self._config).items():
            self.cfg.set(key, value)

    def load(self) -> Flask:
        app = create_app(self._config)
        app.wsgi_app = LargeBodies(app.wsgi_app)  # type: ignore[method-assign]  # as Flask advises
        return app


class LargeBodies:
    """Reads large bodies in large pieces, and ends the connection with the answer.

    It may have been refused unread, and gunicorn would read all of it to find the next request.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        length = environ.get("CONTENT_LENGTH") or "0"
        small = length.isdecimal() and int(length) <= MAX_BODY_BYTES
        if not small or environ.get("CONTENT_TYPE", "").startswith(MULTIPART):
            start_response.__self__.force_close()
            # What gunicorn puts around its reader takes 1 KiB at a time, and that 8 KiB from the socket.
            reader = environ["wsgi.input"].reader
            reader.unreader.mxchunk = PIECE_BYTES
            environ["wsgi.input"] = reader
        return self._application(environ, start_response)


def settings(config: Config) -> dict[str, Any]:
    """gunicorn's settings."""
    api = config.api
    address = f"[{api.listen.address}]" if ":" in api.listen.address else api.listen.address
    values = {
        "bind": f"{address}:{api.listen.port}",
        "worker_class": f"{__name__}.{JsonErrorWorker.__name__}",
        "logger_class": QuotedLogger,
        "workers": api.workers,
        "threads": api.threads,
        "preload_app": False,
        "timeout": IDLE_WORKER_S,
        "graceful_timeout": GRACE_S,
        "keepalive": KEEP_ALIVE_S,
        "limit_request_line": MAX_REQUEST_LINE,
        "accesslog": "-",
        "errorlog": "-",
        "access_log_format": ACCESS_LOG,
        "proc_name": "pvc-api",
        # Never trust a caller's word about where it comes from or what was encrypted.
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        "post_worker_init": end_streams_with_worker,
    }
    if api.ssl.enabled:
        values |= {"certfile": api.ssl.certificate, "keyfile": api.ssl.key}
    return values


def end_streams_with_worker(worker: Any) -> None:
    """Followed logs look at this, so that SIGTERM need not wait for the builds they follow."""
    worker.wsgi.extensions[EXTENSION].stopping = functools.partial(_is_stopping, worker)


def _is_stopping(worker: Any) -> bool:
    return not worker.alive


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    Server(config).run()
