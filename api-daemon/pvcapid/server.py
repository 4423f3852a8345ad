"""The web server: gunicorn with threads, set up from our configuration."""

import functools
import logging
from typing import Any
from urllib.parse import quote

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from pvcapid.app import create_app
from pvcapid.connections import PatientWorker
from pvcapid.late_body import LATE_BODY, LateBody, has_come
from pvcapid.services import EXTENSION
from pvccommon.config import Config

# Without query strings: existing clients put everything into them.
ACCESS_LOG = '%(h)s "%(m)s %(U)s %(H)s" %(s)s %(B)s bytes %(L)s s'
GRACE_S = 15
KEEP_ALIVE_S = 5
IDLE_WORKER_S = 60
MOST_CONNECTIONS = 600  # of one process; open files are 1,024 where nobody says otherwise
MAX_REQUEST_LINE = 8190  # the most gunicorn takes; longer requests belong into a body


class QuotedLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """An access log whose lines cannot be broken up by what a path holds."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        atoms: dict[str, Any] = super().atoms(resp, req, environ, request_time)
        atoms["U"] = quote(str(environ.get("PATH_INFO", "")).encode("latin-1", "replace"))[:1024]
        return atoms


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's application. `load` runs in each worker after the fork, so no connection is shared."""

    def __init__(self, config: Config) -> None:
        self._config = config
        super().__init__()

    def load_config(self) -> None:
        for key, value in settings(self._config).items():
            self.cfg.set(key, value)

    def load(self) -> "LateBodies":
        return LateBodies(create_app(self._config))


class LateBodies:
    """Gives the application those bodies that have not come yet, and ends their connections with the answer.

    They may be refused unread, and gunicorn would wait for all of it to find the next request.
    """

    def __init__(self, application: Flask) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        answer = start_response.__self__
        reader = environ["wsgi.input"].reader
        if not has_come(reader):
            answer.force_close()
            environ["wsgi.input"] = environ[LATE_BODY] = LateBody(reader, answer.req.unreader)
        return self.application(environ, start_response)


def settings(config: Config) -> dict[str, Any]:
    """gunicorn's settings."""
    api = config.api
    address = f"[{api.listen.address}]" if ":" in api.listen.address else api.listen.address
    values = {
        "bind": f"{address}:{api.listen.port}",
        "worker_class": f"{PatientWorker.__module__}.{PatientWorker.__name__}",
        "logger_class": QuotedLogger,
        "workers": api.workers,
        "threads": api.threads,
        "worker_connections": MOST_CONNECTIONS,
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
    worker.wsgi.application.extensions[EXTENSION].stopping = functools.partial(_is_stopping, worker)


def _is_stopping(worker: Any) -> bool:
    return not worker.alive


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    Server(config).run()
