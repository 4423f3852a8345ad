"""Who changed what, when, from where: a row for every change, in the same transaction as the change itself.

Refused changes of known callers get a row of their own. Documents are kept as size and hash, arguments only
when the script declares them and not as secret.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, current_app, g, request
from marshmallow import Schema
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from pvcapid.auth import caller
from pvcapid.fields import Document
from pvcapid.parameters import raw_parameters
from pvcapid.services import services
from pvccommon.errors import Exists, PvcError, WrongState
from pvccommon.models import Audit
from pvccommon.run import REDACTED

log = logging.getLogger(__name__)

CHANGES = ("POST", "PUT", "DELETE", "PATCH")
LONGEST = 256
UNIQUE_VIOLATION = "23505"  # PostgreSQL, appendix A
FOREIGN_KEY_VIOLATION = "23503"


def init_app(app: Flask) -> None:
    app.after_request(record_rest)


@contextmanager
def changing(what: str, status: int = 200) -> Iterator[Session]:
    """A transaction that changes something, with its audit row.

    The constraints of the database decide what two requests at one time may do: raises Exists when a name is
    taken, WrongState when a thing is still in use.
    """
    try:
        with services().database.session() as session:
            yield session
            session.flush()
            session.add(_row(status))
    except IntegrityError as exc:
        raise _explain(what, exc) from exc
    g.audited = True


def show_arguments(texts: Iterable[str]) -> None:
    """Arguments (`key=value`) of this request that may stand in the audit row as they are."""
    g.shown_arguments = {*g.get("shown_arguments", ()), *texts}


def record_rest(answer: Response) -> Response:
    """Changes that failed, and those that touch no row of ours. Runs after each request."""
    wanted = request.method in CHANGES and request.endpoint and caller() is not None
    if wanted and not g.get("audited") and not _is_dry_run():
        try:
            with services().database.session() as session:
                session.add(_row(answer.status_code))
        except (PvcError, SQLAlchemyError):
            log.exception("cannot write the audit row of %s %s", request.method, ascii(request.path))
    return answer


def _is_dry_run() -> bool:
    info = getattr(current_app.view_functions.get(request.endpoint or ""), "info", None)
    return info is not None and info.dry_run


def _row(status: int) -> Audit:
    who = caller()
    return Audit(
        who=who.name if who else "nobody",
        role=who.role if who else "none",
        address=request.remote_addr or "local",
        method=request.method,
        path=request.path.replace("\0", "?")[:1024],
        parameters=_parameters(),
        status=status,
    )


def _parameters() -> dict[str, Any]:
    """What was given, masked; values of parameters the endpoint does not have are not kept either."""
    info = getattr(current_app.view_functions.get(request.endpoint or ""), "info", None)
    known = info.parameters() if info else Schema()
    if "raw_parameters" not in g:
        return {}
    return {name[:64]: _shown(known, name, values) for name, values in list(raw_parameters().items())[:64]}


def _shown(schema: Schema, name: str, values: list[Any]) -> Any:
    field = schema.load_fields.get(name)
    if name == "arg":
        return [
            _shown_argument(text)
            for value in values
            for text in (value if isinstance(value, list) else [value])
        ]
    shown = [_shown_value(value, isinstance(field, Document)) if field else REDACTED for value in values[:64]]
    return shown[0] if len(shown) == 1 else shown


def _shown_value(value: Any, document: bool) -> Any:
    if document and isinstance(value, str):
        data = value.encode()
        return f"<{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}>"
    if isinstance(value, str):
        return value[:LONGEST]
    return value if isinstance(value, bool | int | None) and abs(value or 0) < 1 << 53 else REDACTED


def _shown_argument(text: Any) -> str:
    if text in g.get("shown_arguments", ()):
        return str(text)[:LONGEST]
    return f"{text.partition('=')[0][:64]}={REDACTED}" if isinstance(text, str) and "=" in text else REDACTED


def _explain(what: str, error: IntegrityError) -> PvcError:
    code = getattr(error.orig, "pgcode", "")
    if code == UNIQUE_VIOLATION:
        return Exists(what, "it exists already")
    if code == FOREIGN_KEY_VIOLATION:
        return WrongState(what, "something it needs has just been removed, or something still uses it")
    return WrongState(what, "the database refuses it")
