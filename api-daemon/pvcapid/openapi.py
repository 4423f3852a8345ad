"""The OpenAPI document, made from the very schemas that check parameters and shape answers."""

import re
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask, current_app
from marshmallow import Schema, fields
from werkzeug.routing import Rule

from pvcapid.auth import HEADER, PUBLIC, REQUIRED_ROLE
from pvcapid.endpoint import Endpoint
from pvcapid.fields import Document, NoParameters
from pvcapid.parameters import FORM, JSON
from pvcapid.uploaded_file import MULTIPART
from pvccommon import __version__

OPENAPI_VERSION = "3.0.3"
OCTETS = "application/octet-stream"
UPLOAD = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}},
    "required": ["file"],
}


class ProblemSchema(Schema):
    path = fields.String(metadata={"description": "where, such as `disks[1].size`"})
    message = fields.String()


class ErrorSchema(Schema):
    message = fields.String(required=True, metadata={"description": "one line for people"})
    what = fields.String()
    why = fields.String()
    hint = fields.String()
    kind = fields.String(metadata={"description": "the sort of error, such as wrong-input or not-found"})
    problems = fields.List(fields.Nested(ProblemSchema))


def openapi_document() -> dict[str, Any]:
    """The document of the application that answers the current request."""
    spec = APISpec(
        title="PVC API",
        version=__version__,
        openapi_version=OPENAPI_VERSION,
        info={"description": "Parameters are taken from query string, form or JSON body alike."},
        plugins=[MarshmallowPlugin(schema_name_resolver=_schema_name)],
    )
    spec.components.security_scheme("key", {"type": "apiKey", "in": "header", "name": HEADER})
    for path, operations in sorted(_paths(current_app).items()):
        spec.path(path=path, operations=operations)
    document: dict[str, Any] = spec.to_dict()
    return document


def _paths(app: Flask) -> dict[str, dict[str, Any]]:
    paths: dict[str, dict[str, Any]] = {}
    for rule in app.url_map.iter_rules():
        info = getattr(app.view_functions[rule.endpoint], "info", None)
        if info is None:
            continue
        operations = paths.setdefault(re.sub(r"<([^>]+)>", r"{\1}", rule.rule), {})
        for method in methods_of(rule):
            operations[method.lower()] = _operation(rule, method, info)
    return paths


def methods_of(rule: Rule) -> list[str]:
    """The methods a route is for, without those that come with others."""
    methods = rule.methods or set()
    return sorted(methods - {"HEAD", "OPTIONS"} or methods)


def _operation(rule: Rule, method: str, info: Endpoint) -> dict[str, Any]:
    in_path = [
        {"in": "path", "name": name, "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"<([^>]+)>", rule.rule)
    ]
    role = REQUIRED_ROLE[rule.endpoint]
    operation: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [rule.endpoint.split(".")[0]],
        "summary": info.summary,
        "description": "Open to everybody." if role == PUBLIC else f"Needs the role {role}.",
        "security": [] if role == PUBLIC else [{"key": []}],
        "parameters": in_path + _query(info, required=method == "GET"),
        "responses": _responses(info),
    }
    if info.upload:
        schema = UPLOAD if info.body == MULTIPART else {"type": "string", "format": "binary"}
        operation["requestBody"] = {"required": True, "content": {info.body: {"schema": schema}}}
    elif method != "GET" and info.parameters is not NoParameters:
        content = {kind: {"schema": info.parameters} for kind in (FORM, JSON)}
        operation["requestBody"] = {"required": False, "content": content}
    return operation


def _query(info: Endpoint, *, required: bool) -> list[Any]:
    """Parameters in the query string; for changes none is required there, since all may stand in the body."""
    parameters = []
    converter = MarshmallowPlugin(schema_name_resolver=_schema_name)
    APISpec("", "", OPENAPI_VERSION, plugins=[converter])
    for name, field in info.parameters().fields.items():
        if isinstance(field, Document):
            continue
        schema = converter.converter.field2property(field)  # type: ignore[union-attr]
        parameters.append(
            {"in": "query", "name": name, "required": required and field.required, "schema": schema}
        )
    return parameters


def _responses(info: Endpoint) -> dict[str, Any]:
    schema: Any = {} if info.answer is None else info.answer
    if info.many:
        schema = {"type": "array", "items": schema}
    error = {"description": "an error", "content": {JSON: {"schema": ErrorSchema}}}
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if info.download:
        content = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}
    if "follow" in info.parameters().fields:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {str(info.status): {"description": "done", "content": content}, "default": error}


def _schema_name(schema: Any) -> str:
    cls = schema if isinstance(schema, type) else type(schema)
    return cls.__name__.removesuffix("Schema")
