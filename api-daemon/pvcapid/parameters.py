"""Parameters of a request: from query string, form or JSON body, checked against a schema.

Existing clients put nearly everything into the query string, documents into a form, for all methods.
Everything malformed is a problem of the request, reported together with all others.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import parse_qsl

from flask import Request, g, request
from marshmallow import RAISE, Schema, ValidationError
from marshmallow.fields import Field, List
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from pvcapid.late_body import LATE_BODY
from pvcapid.services import services
from pvccommon.errors import Problem, WrongInput

MAX_BODY_BYTES = 4 * 1024 * 1024  # a document of 1 MiB grows when it is encoded as a form
MAX_PARAMETERS = 2000
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

Raw = dict[str, list[Any]]


class Given(dict[str, Any]):
    """The parameters that are right, and the problems of those that are not."""

    def __init__(self, values: Mapping[str, Any], problems: Iterable[Problem]) -> None:
        super().__init__(values)
        self.problems = list(problems)
        self.hint = ""

    def add(self, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(path, message))
        self.hint = self.hint or hint

    def require_ok(self, what: str = "") -> None:
        """Raise WrongInput with every problem, if there is one."""
        if self.problems:
            what = what or f"{request.method} {request.path}"
            raise WrongInput(what, hint=self.hint, problems=self.problems)


def parse(schema: type[Schema], *, has_body: bool = True) -> Given:
    """What the current request gives, checked. Raises WrongInput only when it cannot be read at all.

    Without `has_body` the body is something else, and is not touched.
    """
    raw = raw_parameters(has_body=has_body)
    loaded = schema(unknown=RAISE)
    fields = loaded.load_fields
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, found in raw.items():
        if name not in fields:
            problems.append(Problem(name[:64], _unknown(fields)))
        elif isinstance(fields[name], List):
            values[name] = _flatten(found)
        elif len(found) > 1:
            problems.append(Problem(name, "is given more than once"))
        elif found[0] is not None or fields[name].allow_none:  # a null that means nothing counts as absent
            values[name] = found[0]
    repeated = {problem.path for problem in problems}
    try:
        return Given(loaded.load(values), problems)
    except ValidationError as exc:
        messages = {name: text for name, text in _by_name(exc).items() if name not in repeated}
        valid = exc.valid_data if isinstance(exc.valid_data, dict) else {}
        return Given(valid, [*problems, *_problems(messages)])


def raw_parameters(*, has_body: bool = True) -> Raw:
    """All parameters of the current request, as lists by name; read once.

    Raises WrongInput, RequestEntityTooLarge.
    """
    if "raw_parameters" not in g:
        g.raw_parameters = _read(request, has_body=has_body)
    raw: Raw = g.raw_parameters
    return raw


def _read(incoming: Request, *, has_body: bool) -> Raw:
    pairs = _pairs(incoming.query_string, "query string")
    body = _read_body(incoming) if has_body else b""
    if body.strip():
        if incoming.mimetype == FORM:
            pairs += _pairs(body, "form")
        elif incoming.mimetype == JSON or incoming.mimetype.endswith("+json"):
            pairs += _json_pairs(body)
        else:
            raise WrongInput("read the request", f"its body must be {FORM} or {JSON}")
    raw: Raw = {}
    for name, value in pairs:
        _require_text(name, name)
        _require_text(name, value)
        raw.setdefault(name, []).append(value)
    return raw


def _read_body(incoming: Request) -> bytes:
    """The whole body; chunked ones are cut off at the limit, too."""
    if (incoming.content_length or 0) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    try:
        with _room_for(incoming):
            body = incoming.stream.read(MAX_BODY_BYTES + 1)
    except TimeoutError as exc:
        raise RequestTimeout("its body came too slowly") from exc
    except OSError as exc:  # broken chunks, or the caller is gone
        raise WrongInput("read the request", "its body breaks off or is malformed") from exc
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def _room_for(incoming: Request) -> AbstractContextManager[None]:
    """Who waits for a body holds a thread. Raises Busy."""
    if LATE_BODY not in incoming.environ:
        return nullcontext()
    return services().long_requests.transfer("read the request")


def _pairs(data: bytes, where: str) -> list[tuple[str, Any]]:
    try:
        text = data.decode("ascii")
        return list(
            parse_qsl(
                text, keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=MAX_PARAMETERS
            )
        )
    except UnicodeDecodeError as exc:
        raise WrongInput("read the request", f"its {where} is not percent-encoded UTF-8") from exc
    except ValueError as exc:
        raise WrongInput(
            "read the request", f"its {where} has more than {MAX_PARAMETERS} parameters"
        ) from exc


def _json_pairs(data: bytes) -> list[tuple[str, Any]]:
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise WrongInput("read the request", f"its body is not JSON: {reason}") from exc
    if not isinstance(document, dict):
        raise WrongInput("read the request", "its body must be a JSON object")
    return list(document.items())


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


def _require_text(name: str, value: Any) -> None:
    """Refuse what no text of ours may hold: NUL and lone surrogates; looks into lists of texts."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and ("\0" in item or _has_surrogate(item)):
            what = repr(name[:64]) if item is not name else "a parameter's name"
            raise WrongInput("read the request", f"{what} holds a character that is not allowed")


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _flatten(found: list[Any]) -> list[Any]:
    """A list parameter: repeated, or one JSON list. One empty text, or null, is the empty list."""
    items: list[Any] = []
    for value in found:
        items.extend(value if isinstance(value, list) else [value])
    return [] if items in ([""], [None]) else items


def _unknown(fields: Mapping[str, Field]) -> str:
    return (
        f"is not a parameter here; known: {', '.join(fields)}"
        if fields
        else "is not a parameter here; there are none"
    )


def _by_name(error: ValidationError) -> dict[str, Any]:
    return error.messages if isinstance(error.messages, dict) else {"_schema": error.messages}


def _problems(messages: Any, path: str = "") -> Iterable[Problem]:
    """Marshmallow's tree of messages as a flat list."""
    if isinstance(messages, dict):
        for key, below in messages.items():
            inner = f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
            yield from _problems(below, path if key == "_schema" else f"{path}{inner}")
    else:
        for message in messages if isinstance(messages, list) else [messages]:
            yield Problem(path, str(message))
