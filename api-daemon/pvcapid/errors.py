"""The one place where failures become answers: always a JSON object with a `message`."""

import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from pvcapid.parameters import MAX_BODY_BYTES
from pvccommon.errors import HTTP_STATUS, Internal, Kind, NotFound, PvcError, WrongInput

log = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    app.register_error_handler(PvcError, answer_error)
    app.register_error_handler(HTTPException, answer_http)
    app.register_error_handler(Exception, answer_unexpected)


def answer_error(error: PvcError) -> Response:
    status = HTTP_STATUS[error.kind]
    if error.kind is Kind.NOT_FOUND:
        status = g.get("absent_status", status)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s failed: %s", request.method, ascii(request.path), error.message)
    return _answer(error.to_dict(), status)


def answer_http(error: HTTPException) -> Response:
    """What Flask and Werkzeug raise themselves."""
    code = error.code or 500
    what = f"{request.method} {request.path[:256]}"
    if code == HTTPStatus.NOT_FOUND:
        known: PvcError = NotFound(what, "there is no such resource", "see /api/v1/openapi.json")
    elif code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        known = WrongInput(what, f"the resource takes {allowed or 'other methods'}")
    elif code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        known = WrongInput(what, f"the body is larger than {MAX_BODY_BYTES} bytes")
    else:
        kind = WrongInput if code < HTTPStatus.INTERNAL_SERVER_ERROR else Internal
        known = kind(what, error.description or error.name)
    answer = _answer(known.to_dict(), code)
    for name, value in error.get_headers():
        if name.lower() == "allow":
            answer.headers[name] = value
    return answer


def answer_unexpected(error: Exception) -> Response:
    """A defect of ours: the trace goes to the log, the caller learns where it stands."""
    log.error("%s %s: unexpected error", request.method, ascii(request.path), exc_info=error)
    known = Internal(
        f"{request.method} {request.path}", "an unexpected error; the daemon's log has the details"
    )
    return _answer(known.to_dict(), HTTP_STATUS[known.kind])


def _answer(document: dict[str, Any], status: int) -> Response:
    document["message"] = " ".join(document["message"].split())  # one line, whatever a program said
    answer = jsonify(document)
    answer.status_code = status
    return answer
