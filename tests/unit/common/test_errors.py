"""The error tree: what, why, hint, kind."""

import pytest

from pvccommon import errors
from pvccommon.errors import HTTP_STATUS, Kind, NoSpace, Problem, PvcError, WrongInput, error_from_dict


def test_every_kind_has_a_status_and_a_class() -> None:
    assert set(HTTP_STATUS) == set(Kind)
    classes = {cls.kind for cls in PvcError.__subclasses__()}
    assert classes == set(Kind)


def test_problems_make_the_reason_when_none_is_given() -> None:
    error = WrongInput("add disk", problems=[Problem("size", "is missing"), Problem("", "and more")])
    assert error.message == "add disk: size: is missing; and more"


def test_message_of_the_document_is_one_text_with_the_hint() -> None:
    document = NoSpace("create volume vms/a", "pool is full", "remove volumes").to_dict()
    assert document["message"] == "create volume vms/a: pool is full (hint: remove volumes)"
    assert document["kind"] == "no-space"


@pytest.mark.parametrize("cls", PvcError.__subclasses__(), ids=lambda cls: cls.__name__)
def test_errors_survive_a_process_border(cls: type[PvcError]) -> None:
    error = cls("what", "why", "hint", [Problem("path", "message")])
    copy = error_from_dict(error.to_dict())
    assert type(copy) is cls
    assert copy.to_dict() == error.to_dict()


def test_unknown_kind_becomes_internal() -> None:
    assert isinstance(error_from_dict({"kind": "new", "what": "x"}), errors.Internal)
