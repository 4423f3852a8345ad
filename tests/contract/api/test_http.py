"""Callers, roles, audit, and requests that mean no good: never a 500, always JSON."""

import json
from typing import Any

import pytest
from flask import Flask

from pvcapid import auth
from pvcapid.app import create_app
from pvcapid.openapi import methods_of
from pvccommon.config import parse_config
from pvccommon.database import Database
from pvccommon.models import Audit, SystemTemplate
from pvccommon.tokens import ROLES

SYSTEM = {"name": "small", "vcpus": "2", "vram": "2048", "serial": "True", "vnc": "False"}
SYSTEM_PATH = "/provisioner/template/system"
FORM = "application/x-www-form-urlencoded"


def routes(app: Flask) -> list[tuple[str, str, str]]:
    """(endpoint, method, path) of everything."""
    found = []
    for rule in app.url_map.iter_rules():
        path = rule.rule.removeprefix("/api/v1")
        for argument in rule.arguments:
            path = path.replace(f"<{argument}>", "some")
        found += [(rule.endpoint, method, path) for method in methods_of(rule)]
    return found


def audit_rows(database: Database) -> list[Audit]:
    with database.session() as session:
        return list(session.query(Audit).order_by(Audit.id))


# ---- who may do what


def test_every_endpoint_has_a_role(app: Flask) -> None:
    endpoints = {endpoint for endpoint, _, _ in routes(app)}
    assert len(endpoints) > 40
    assert endpoints == set(auth.REQUIRED_ROLE)
    assert set(auth.REQUIRED_ROLE.values()) <= {*ROLES, auth.PUBLIC}


@pytest.mark.parametrize("role", ["none", *ROLES])
def test_roles(app: Flask, caller: Any, expect: Any, role: str) -> None:
    api = caller(role)
    for endpoint, method, path in routes(app):
        required = auth.REQUIRED_ROLE[endpoint]
        status = api(method, path).status_code
        if required == auth.PUBLIC:
            assert status == 200
        elif role == "none":
            assert status == 401, endpoint
        elif auth.may(role, required):
            assert status not in (401, 403), endpoint
        else:
            assert status == 403, endpoint


def test_only_admins_change_scripts() -> None:
    assert {auth.REQUIRED_ROLE[f"scripts.{verb}_script"] for verb in ("create", "modify", "delete")} == {
        "admin"
    }


@pytest.mark.parametrize("token", ["", "x", "pvc_" + "x" * 43, "é", "x" * 5000])
def test_wrong_tokens(app: Flask, empty: None, expect: Any, token: str) -> None:
    answer = app.test_client().get("/api/v1/tasks", headers={"X-Api-Key": token})
    assert expect(answer, 401)["kind"] == "unauthenticated"


def test_the_caller_is_known_before_parameters_are_looked_at(caller: Any, expect: Any) -> None:
    nobody, viewer = caller("none"), caller("viewer")
    for body in (b"{", b"\xff", b"x" * 5_000_000):
        expect(nobody.post(SYSTEM_PATH, data=body, content_type="application/json"), 401)
        expect(viewer.post(SYSTEM_PATH, data=body, content_type="application/json"), 403)
    expect(nobody.get("/no/such/thing"), 401)


def anonymous(settings: dict[str, Any], **authentication: Any) -> Any:
    config = parse_config({**settings, "api": {"authentication": authentication}})
    return create_app(config).test_client()


def test_no_token_is_needed_only_where_configured(settings: dict[str, Any], empty: None, expect: Any) -> None:
    client = anonymous(settings, anonymous_role="viewer")
    local = {"Host": "127.0.0.1:7370"}
    expect(client.get("/api/v1/tasks", headers=local), 200)
    expect(client.post("/api/v1/provisioner/template/storage", headers=local), 403)
    expect(client.get("/api/v1/tasks", headers={**local, "X-Api-Key": "wrong"}), 401)
    # A page in a browser on this machine is not a caller.
    expect(client.get("/api/v1/tasks", headers={**local, "Origin": "http://evil.example"}), 401)
    expect(client.get("/api/v1/tasks", headers={"Host": "evil.example"}), 401)
    client = anonymous(settings, enabled=False)
    expect(client.post("/api/v1/provisioner/template/storage?name=x", headers=local), 200)


# ---- audit


def test_every_change_leaves_an_audit_row(api: Any, database: Database, expect: Any) -> None:
    expect(api.post(SYSTEM_PATH, SYSTEM), 200)
    expect(api.post(SYSTEM_PATH, SYSTEM), 400)
    expect(api.get(SYSTEM_PATH), 200)
    expect(api.delete(f"{SYSTEM_PATH}/small"), 200)
    rows = audit_rows(database)
    assert [(row.method, row.status) for row in rows] == [("POST", 200), ("POST", 400), ("DELETE", 200)]
    assert (rows[0].who, rows[0].role, rows[0].address) == ("the-admin", "admin", "127.0.0.1")
    assert rows[0].path == "/api/v1" + SYSTEM_PATH
    assert rows[0].parameters == SYSTEM


def test_refused_callers_are_audited(caller: Any, database: Database, expect: Any) -> None:
    expect(caller("viewer").post(SYSTEM_PATH, SYSTEM), 403)
    expect(caller("none").post(SYSTEM_PATH, SYSTEM), 401)
    assert [(row.who, row.status) for row in audit_rows(database)] == [("the-viewer", 403)]


def test_secrets_and_documents_are_masked(
    api: Any, profile: str, answering: Any, database: Database, expect: Any
) -> None:
    expect(
        api.post(
            "/provisioner/create", {"name": "web1", "profile": profile, "arg": ["password=hidden", "count=2"]}
        ),
        202,
    )
    # Wrong names are masked, too: they may be a secret's, misspelt.
    expect(
        api.post("/provisioner/create", {"name": "web2", "profile": profile, "arg": "pasword=hidden"}), 400
    )
    expect(api.post(SYSTEM_PATH, {"pasword": "hidden"}), 400)
    rows = audit_rows(database)
    text = json.dumps([row.parameters for row in rows])
    assert "hidden" not in text
    assert "$6$salt" not in text
    assert "VMBuilderScript" not in text
    assert "sha256" in text
    by_name = {row.parameters.get("name"): row.parameters for row in rows}
    assert by_name["web1"]["arg"] == ["password=<redacted>", "count=2"]
    assert by_name["web2"]["arg"] == ["pasword=<redacted>"]
    assert by_name["debian12"]["arg"] == ["owner=me", "password=<redacted>"]


def test_a_plan_is_no_change(api: Any, profile: str, answering: Any, database: Database, expect: Any) -> None:
    before = len(audit_rows(database))
    expect(api.post("/provisioner/plan", {"name": "web1", "profile": profile}), 200)
    assert len(audit_rows(database)) == before


# ---- hostile requests


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/no/such/thing", 404),
        ("POST", "/vm", 405),
        ("PATCH", SYSTEM_PATH, 405),
        ("OPTIONS", SYSTEM_PATH, 405),
        ("GET", f"{SYSTEM_PATH}/a%2Fb", 404),
        ("GET", f"{SYSTEM_PATH}/a%00b", 400),
        ("GET", f"{SYSTEM_PATH}/a%0Ab", 400),
        ("DELETE", f"{SYSTEM_PATH}/%FF%FE", 400),
        ("GET", f"{SYSTEM_PATH}/%ED%A0%80", 404),
        ("GET", f"{SYSTEM_PATH}/{'x' * 900}", 404),
        ("GET", f"{SYSTEM_PATH}/{'x' * 5000}", 400),
        ("GET", "/provisioner/../tasks", 404),
        ("GET", "/node/%00", 400),
        ("GET", "/vm/%F0%9F%92%A9", 404),
    ],
)
def test_odd_urls(api: Any, expect: Any, method: str, path: str, status: int) -> None:
    expect(api(method, path), status)


def test_outside_the_prefix(app: Flask, empty: None, expect: Any) -> None:
    for path in ("/", "/metrics", "/api/v2/"):
        expect(app.test_client().get(path), 401)


def test_slashes_are_never_redirected(api: Any, expect: Any) -> None:
    expect(api.post(f"{SYSTEM_PATH}/", SYSTEM), 200)
    assert api.get("//tasks").status_code == 404


def test_head_has_the_headers_of_get(api: Any) -> None:
    answer = api("HEAD", "/")
    assert (answer.status_code, answer.data) == (200, b"")


def test_headers_that_protect(api: Any) -> None:
    for path in ("/", "/no/such/thing"):
        headers = api.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
    assert "GET" in api("PATCH", SYSTEM_PATH).headers["Allow"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"null", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"name": "a", "name": "b"}', "application/json"),
        (b'{"name": "\\ud800"}', "application/json"),
        (b'{"name": "a\\u0000b"}', "application/json"),
        (b'{"arg\\u0000": 1}', "application/json"),
        (b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "application/json"),
        (b'{"name": ' + b"[" * 500 + b"]" * 500 + b"}", "application/json"),
        (b'{"name": {"a": {"b": 1}}}', "application/json"),
        (b'{"vcpus": 1e999, "vram": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"vcpus": NaN, "serial": 7, "vnc": [], "name": true}', "application/json"),
        (b"name=%00", FORM),
        (b"name=%FF", FORM),
        (b"name=\xff", FORM),
        (b"name=%ED%A0%80", FORM),
        (b"a=1&" * 5000, FORM),
        (b"=&=&==&&", FORM),
        (b"<xml/>", "text/xml"),
        (b"name=small", ""),
        (
            b"--x\r\nContent-Disposition: form-data; name=name\r\n\r\nsmall\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_odd_bodies(api: Any, database: Database, expect: Any, body: bytes, kind: str) -> None:
    for path in (SYSTEM_PATH, "/provisioner/profile", "/provisioner/script", "/provisioner/create"):
        expect(api.post(path, data=body, content_type=kind), 400)
    with database.session() as session:
        assert session.query(SystemTemplate).count() == 0


def test_odd_query_strings(api: Any, expect: Any) -> None:
    for query in (
        b"limit=%00",
        b"limit=%FF",
        b"limit=a&limit=b",
        b"limit[]=a",
        b"%00=1",
        b"limit=" + b"x" * 2000,
    ):
        expect(api.get(SYSTEM_PATH, query), 400)


def test_a_scalar_is_given_once(api: Any, expect: Any) -> None:
    answer = expect(api.post(SYSTEM_PATH, {**SYSTEM, "vcpus": ["1", "2"]}), 400)
    assert [problem["path"] for problem in answer["problems"]] == ["vcpus"]
    answer = expect(api.post(SYSTEM_PATH, SYSTEM, form={"name": "other"}), 400)
    assert [problem["path"] for problem in answer["problems"]] == ["name"]


def test_bodies_have_a_limit(api: Any, app: Flask, expect: Any) -> None:
    expect(api.post("/provisioner/userdata", {"name": "x"}, form={"data": "x" * 5_000_000}), 413)
    # Without a length, as chunked bodies come.
    answer = api.post(
        "/provisioner/userdata?name=x",
        content_type=FORM,
        environ_overrides={"wsgi.input": Endless(), "wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
    )
    expect(answer, 413)


class Endless:
    """A body without an end."""

    def read(self, size: int = -1) -> bytes:
        assert 0 < size < 10_000_000
        return b"x" * size


def test_errors_of_ours_are_told_without_their_text(
    api: Any, app: Flask, monkeypatch: pytest.MonkeyPatch, expect: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("pvcapid.templates_system.list_rows", broken)
    answer = expect(api.get(SYSTEM_PATH), 500)
    assert answer["kind"] == "internal"
    assert "secret of the inside" not in json.dumps(answer)


def test_a_database_that_is_away_is_told(settings: dict[str, Any], expect: Any) -> None:
    app = create_app(parse_config({**settings, "database": {**settings["database"], "port": 1}}))
    answer = expect(app.test_client().get("/api/v1/tasks", headers={"X-Api-Key": "x"}), 500)
    assert answer["kind"] == "environment"
    assert "PostgreSQL" in answer["hint"]
