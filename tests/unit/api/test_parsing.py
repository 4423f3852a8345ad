"""Parameters, arguments, filters and documents, without a database or a server."""

import warnings
from typing import Any

import pytest
from flask import Flask
from marshmallow import Schema

with warnings.catch_warnings():  # Debian 12's kombu uses what later Pythons will not have
    warnings.simplefilter("ignore", DeprecationWarning)
    from pvcapid import domain_xml, fields, look_up, script_arguments, vm_element
    from pvcapid.parameters import Given, parse, raw_parameters

from pvccommon.declarations import Argument, Declaration
from pvccommon.errors import WrongInput
from pvccommon.models import Userdata, Vm


class Sample(Schema):
    name = fields.Name(required=True)
    count = fields.Whole(1, 9)
    flag = fields.Flag(load_default=True)
    arg = fields.Texts()
    bind = fields.Address(allow_none=True)


def parsed(**request: Any) -> Given:
    with Flask("test").test_request_context("/", method="POST", **request):
        return parse(Sample)


def paths(given: Given) -> list[str]:
    return sorted(problem.path for problem in given.problems)


@pytest.mark.parametrize(
    "request_",
    [
        {"query_string": "name=x&count=2&flag=F&arg=a%3Db&arg=c"},
        {"data": {"name": "x", "count": "2", "flag": "no", "arg": ["a=b", "c"]}},
        {"json": {"name": "x", "count": 2, "flag": False, "arg": ["a=b", "c"]}},
        {"query_string": "name=x&flag=0&arg=a%3Db", "json": {"count": "2", "arg": ["c"]}},
        {"query_string": "name=x&arg=a%3Db", "data": {"count": "+2", "arg": "c", "flag": "off"}},
    ],
)
def test_three_ways_are_one(request_: dict[str, Any]) -> None:
    given = parsed(**request_)
    assert given.problems == []
    assert given == {"name": "x", "count": 2, "flag": False, "arg": ["a=b", "c"]}


def test_null_counts_as_absent_unless_it_means_something() -> None:
    given = parsed(json={"name": "x", "count": None, "flag": None, "bind": None, "arg": []})
    assert given.problems == []
    assert given == {"name": "x", "flag": True, "bind": None, "arg": []}
    assert parsed(query_string="name=x&bind=&arg=")["arg"] == []


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        ({}, ["name"]),
        ({"name": None}, ["name"]),
        (
            {"name": 5, "count": 1.5, "flag": "2", "bind": 7, "arg": [1]},
            ["arg[0]", "bind", "count", "flag", "name"],
        ),
        ({"name": "x", "count": True}, ["count"]),
        ({"name": "x", "count": "0x1"}, ["count"]),
        ({"name": "x", "count": "١"}, ["count"]),
        ({"name": "x", "arg": ["a"] * 300}, ["arg"]),
        ({"name": "x", "arg": "a" * 5000}, ["arg[0]"]),
        ({"name": "x", "arg": {"a": 1}}, ["arg[0]"]),
        ({"name": "x", "nmae": "y"}, ["nmae"]),
        ({"name": ["x"]}, ["name"]),
        ({"name": "x\n"}, ["name"]),
        ({"name": "x", "bind": "fe80::1%eth0"}, ["bind"]),
    ],
)
def test_what_is_wrong_is_told_with_its_path(document: dict[str, Any], wrong: list[str]) -> None:
    assert paths(parsed(json=document)) == wrong


def test_problems_are_raised_together() -> None:
    given = parsed(json={"count": 99})
    given.add("name", "is also odd")
    with pytest.raises(WrongInput) as caught:
        given.require_ok("try")
    assert sorted(problem.path for problem in caught.value.problems) == ["count", "name", "name"]


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b"\xff", b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b'{"a": "\\u0000"}']
)
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    app = Flask("test")
    with app.test_request_context("/", method="POST", data=body, content_type="application/json"):
        with pytest.raises(WrongInput):
            raw_parameters()


@pytest.mark.parametrize(
    ("limit", "condition"),
    [
        ("", "userdata.name LIKE '%%' || '' || '%%' ESCAPE '/'"),
        ("a_b%", "userdata.name LIKE '%%' || 'a/_b/%%' || '%%' ESCAPE '/'"),
        ("^a", "userdata.name LIKE 'a' || '%%' ESCAPE '/'"),
        ("a$", "userdata.name LIKE '%%' || 'a' ESCAPE '/'"),
        ("^a$", "userdata.name = 'a'"),
        ("^", "userdata.name LIKE '' || '%%' ESCAPE '/'"),
        ("^$", "userdata.name = ''"),
    ],
)
def test_filters(limit: str, condition: str) -> None:
    compiled = look_up.matching(Userdata.name, limit).compile(compile_kwargs={"literal_binds": True})
    assert " ".join(str(compiled).split()).replace("(", "").replace(")", "").replace(
        "%%", "%"
    ) == condition.replace("%%", "%")


DECLARED = Declaration(
    summary="",
    description="",
    api_version=1,
    legacy=False,
    cacheable=True,
    sha256="",
    arguments=(Argument("plain"), Argument("password", secret=True), Argument("must", required=True)),
)


def test_only_declared_and_plain_arguments_are_shown() -> None:
    texts = ["plain=1", "password=2", "other=3", "nothing"]
    assert script_arguments.without_secrets(DECLARED, texts) == ["plain=1"]


def test_a_profile_may_leave_arguments_to_the_request() -> None:
    assert script_arguments.problems(DECLARED, ["plain=1"]) == []
    assert len(script_arguments.problems(DECLARED, ["other=1", "plain"])) == 2


def test_redacted_values_are_put_back_only_where_they_stay_secret() -> None:
    kept = ["password=old", "plain=x"]
    given = Given({"arg": ["password=<redacted>", "plain=<redacted>"]}, [])
    assert script_arguments.restore_secrets(DECLARED, None, given, kept) == [
        "password=old",
        "plain=<redacted>",
    ]
    assert given.problems == []
    assert script_arguments.restore_secrets(DECLARED, None, given, []) == ["plain=<redacted>"]
    assert paths(given) == ["arguments.password"]


def test_a_domain_document_is_read_without_entities() -> None:
    entity = "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
    xml = f"{entity}<domain type='kvm'><vcpu>4</vcpu><x>&e;</x></domain>"
    found = domain_xml.describe_domain(xml, {}, {})
    assert (found["type"], found["vcpu_topology"]) == ("kvm", "1/4/1")
    assert "root:" not in str(found)


def test_ceph_disks_keep_their_names() -> None:
    xml = """<domain><devices><disk type='network'><source protocol='rbd' name='vms/web1_sda'/>
    <target dev='sda' bus='scsi'/></disk></devices></domain>"""
    [disk] = domain_xml.describe_domain(xml, {}, {})["disks"]
    assert (disk["type"], disk["name"]) == ("rbd", "vms/web1_sda")


@pytest.mark.parametrize("wanted", ["start", "stop", "disable", "provision"])
@pytest.mark.parametrize(
    "seen", ["running", "paused", "shutdown", "shutoff", "crashed", "missing", "unknown", "suspended"]
)
def test_every_state_has_a_word_clients_know(wanted: str, seen: str) -> None:
    assert vm_element.vm_state(Vm(state=wanted, seen=seen, failed_reason="")) in vm_element.VM_STATES
