"""The API describes itself truthfully, and nothing that is sent to it gives a 500."""

import json
import re
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvcapid.openapi import methods_of

TEXTS = st.one_of(
    st.text(max_size=80), st.sampled_from(["true", "0", "-1", "1" * 30, "a=b", "/", "../..", "%", "^", "$"])
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
# Several are made from one fixture: tables need not be empty between two examples.
RELAXED = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path.removeprefix("/api/v1"), operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def names_of(operation: dict[str, Any], where: str) -> list[str]:
    return [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == where]


def test_every_route_is_described(api: Any, app: Flask, expect: Any) -> None:
    document = expect(api.get("/openapi.json"), 200)
    described = {(method, path) for method, path, _ in operations(document)}
    assert len(described) > 40
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(\w+)>", r"{\1}", rule.rule.removeprefix("/api/v1"))
        for method in methods_of(rule):
            assert (method, path) in described


def test_the_document_is_well_formed(api: Any, expect: Any) -> None:
    document = expect(api.get("/openapi.json"), 200)
    assert document["openapi"].startswith("3.0")
    schemas = document["components"]["schemas"]
    identifiers = []
    for _, path, operation in operations(document):
        identifiers.append(operation["operationId"])
        assert names_of(operation, "path") == re.findall(r"{(\w+)}", path)
        assert operation["summary"]
        assert "default" in operation["responses"]
        assert any(code.startswith("2") for code in operation["responses"])
        for parameter in operation["parameters"]:
            assert set(parameter) <= {"in", "name", "required", "schema", "description", "explode", "style"}
            assert "type" in parameter["schema"], parameter
    assert len(set(identifiers)) == len(identifiers)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references
    assert references <= set(schemas)


def test_the_document_says_what_is_parsed(api: Any, expect: Any) -> None:
    document = expect(api.get("/openapi.json"), 200)
    found = {(method, path): operation for method, path, operation in operations(document)}
    create = found["POST", "/provisioner/create"]
    parameters = {"name", "profile", "define_vm", "start_vm", "arg", "keep_on_failure"}
    assert set(names_of(create, "query")) == parameters
    assert "202" in create["responses"]
    script = found["POST", "/provisioner/script"]
    assert set(names_of(script, "query")) == {"name"}
    assert set(script["requestBody"]["content"]) == {"application/x-www-form-urlencoded", "application/json"}
    schema = document["components"]["schemas"]["NewDocument"]
    assert set(schema["required"]) == {"name", "data"}


def test_documents_in_answers_fit_the_description(api: Any, profile: str, expect: Any) -> None:
    """Every property that is answered is described, and the other way round."""
    document = expect(api.get("/openapi.json"), 200)
    for noun in ("template/system", "template/network", "template/storage", "userdata", "script", "profile"):
        path = f"/provisioner/{noun}"
        response = document["paths"]["/api/v1" + path]["get"]["responses"]["200"]
        reference = response["content"]["application/json"]["schema"]["items"]["$ref"].rsplit("/", 1)[1]
        described = set(document["components"]["schemas"][reference]["properties"])
        [row] = expect(api.get(path), 200)
        assert set(row) == described, noun


@pytest.fixture
def described(api: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return operations(api.get("/openapi.json").json)


@RELAXED
@given(data=st.data())
def test_nothing_that_is_sent_gives_a_500(
    api: Any, answering: Any, described: list[tuple[str, str, dict[str, Any]]], data: st.DataObject
) -> None:
    method, path, operation = data.draw(st.sampled_from(described))
    for name in names_of(operation, "path"):
        path = path.replace(f"{{{name}}}", data.draw(path_segments))
    known = st.sampled_from([*names_of(operation, "query"), "data", "other"])
    way = data.draw(st.sampled_from(["query", "form", "json"]))
    values: Any = VALUES if way == "json" else TEXTS | st.lists(TEXTS, max_size=3)
    sent = {way: data.draw(st.dictionaries(known | TEXTS, values, max_size=8))}
    answer = api(method, path, **sent)
    assert answer.status_code < 500, answer.text
    assert not answer.data or answer.mimetype == "text/event-stream" or isinstance(answer.json, dict | list)


def quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass")) or "x"


path_segments = st.one_of(
    TEXTS.map(quoted), st.sampled_from(["small", "lan", "disk", "debian12", "web1", "sda", "upstream"])
)


@RELAXED
@given(
    query=st.binary(max_size=60),
    body=st.binary(max_size=120),
    kind=st.sampled_from(["json", "x-www-form-urlencoded", "x"]),
)
def test_no_bytes_give_a_500(api: Any, query: bytes, body: bytes, kind: str) -> None:
    text = query.decode("latin-1").replace("\r", "").replace("\n", "")
    answer = api.post("/provisioner/template/system", text, data=body, content_type=f"application/{kind}")
    assert answer.status_code == 400
    assert isinstance(answer.json["message"], str)
