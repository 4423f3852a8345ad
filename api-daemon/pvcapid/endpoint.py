"""What every view has in common: parameters are checked going in, answers are shaped going out.

    @blueprint.post("/provisioner/template/network")
    @endpoint(NetworkTemplateParameters)
    def create_network_template(given: Given) -> str: ...

The declaration is also what the OpenAPI document is made from.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from flask import Response, g, jsonify
from marshmallow import Schema

from pvcapid.fields import Message, NoParameters
from pvcapid.parameters import parse
from pvcapid.uploaded_file import MULTIPART

View = Callable[..., Any]


@dataclass(frozen=True)
class Endpoint:
    """`absent`: the status of NotFound, where existing clients expect another than 404. `lenient`: the view
    adds problems of its own to `given` and calls `given.require_ok()`. `dry_run`: changes nothing.
    `upload`: the view reads the body itself, which is of the type `body`. `download`: it answers with bytes.
    """

    parameters: type[Schema]
    answer: type[Schema] | None
    many: bool
    status: int
    absent: int
    lenient: bool
    dry_run: bool
    upload: bool
    download: bool
    body: str
    summary: str


def endpoint(
    parameters: type[Schema] = NoParameters,
    answer: type[Schema] | None = Message,
    *,
    many: bool = False,
    status: int = 200,
    absent: int = 404,
    lenient: bool = False,
    dry_run: bool = False,
    upload: bool = False,
    download: bool = False,
    body: str = MULTIPART,
) -> Callable[[View], View]:
    """Wrap `view(given, **path) -> result`.

    A text becomes a message, rows or dicts go through the answer's schema, a Response is left as it is.
    """

    def decorate(view: View) -> View:
        summary = (view.__doc__ or view.__name__.replace("_", " ")).strip().splitlines()[0]
        info = Endpoint(
            parameters, answer, many, status, absent, lenient, dry_run, upload, download, body, summary
        )

        @functools.wraps(view)
        def handle(**path: str) -> Response:
            g.absent_status = info.absent
            given = parse(info.parameters, has_body=not info.upload)
            if not info.lenient:
                given.require_ok()
            return _shape(info, view(given, **path))

        described = cast(Any, handle)
        described.info = info
        # Everything under the prefix is answered in JSON, so Flask's own answer to OPTIONS is not.
        described.provide_automatic_options = False
        return handle

    return decorate


def _shape(info: Endpoint, result: Any) -> Response:
    if isinstance(result, Response):
        return result
    if isinstance(result, str):
        result = {"message": result}
    document = info.answer(many=info.many).dump(result) if info.answer else result
    answer = jsonify(document)
    answer.status_code = info.status
    return answer
