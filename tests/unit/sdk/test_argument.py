"""Declarations of arguments check themselves."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pvccommon.declarations import read_declaration
from vmbuilder import Argument


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ({"name": "1st"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a", "type": "float"}, "type must be one of"),
        ({"name": "a", "required": True, "default": "x"}, "no default"),
        ({"name": "a", "type": "integer", "default": "1"}, "must be of type integer"),
        ({"name": "a", "type": "integer", "default": True}, "must be of type integer"),
        ({"name": "a", "type": "integer", "default": 1, "minimum": 2}, "at least 2"),
        ({"name": "a", "type": "integer", "default": 9, "maximum": 2}, "at most 2"),
        ({"name": "a", "type": "integer", "minimum": 2, "maximum": 1}, "greater than maximum"),
        ({"name": "a", "minimum": 2}, "for integers"),
        ({"name": "a", "default": "x", "choices": ("y",)}, "one of y"),
        ({"name": "a", "type": "boolean", "choices": (True,)}, "no choices"),
        ({"name": "a", "pattern": "["}, "no regular expression"),
        ({"name": "a", "type": "integer", "pattern": "1"}, "for strings"),
        ({"name": "a", "default": "xy", "pattern": "x"}, "does not match"),
        ({"name": "a", "type": "list", "default": ("x", "zz"), "pattern": "x|y"}, "'zz' does not match"),
        ({"name": "a", "type": "list", "default": "x"}, "must be of type list"),
    ],
)
def test_contradictory_declaration_is_refused(declaration: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Argument(**declaration)


@pytest.mark.parametrize(
    "declaration",
    [
        {"name": "release", "default": "bookworm", "pattern": "[a-z]+", "help": "codename"},
        {"name": "count", "type": "integer", "default": 3, "minimum": 1, "maximum": 3},
        {"name": "flag", "type": "boolean", "default": False},
        {"name": "packages", "type": "list", "default": ("a", "b"), "choices": ("a", "b", "c")},
        {"name": "password", "required": True, "secret": True},
    ],
)
def test_sound_declaration_is_kept(declaration: dict[str, Any]) -> None:
    argument = Argument(**declaration)
    assert {name: getattr(argument, name) for name in declaration} == declaration
    with pytest.raises(FrozenInstanceError):
        argument.name = "other"  # type: ignore[misc]


def test_secret_value_does_not_show_in_the_message() -> None:
    with pytest.raises(ValueError, match="the value does not match") as refused:
        Argument("key", secret=True, pattern="a+", default="hunter2")
    assert "hunter2" not in str(refused.value)


def test_what_is_read_from_the_source_is_what_the_class_says() -> None:
    from worker_end import BUILDERS

    import vmbuilder.runner as runner
    from vmbuilder.context import Context

    scripts = sorted(BUILDERS.glob("*.py"))
    assert scripts, "there are builders to check"
    for script in scripts:
        declared = read_declaration(script.read_text())
        assert declared.summary and not declared.legacy
        made = type(runner.make_builder(script.read_text(), Context("web1"))).arguments
        assert [a.name for a in declared.arguments] == [a.name for a in made]
        for read, real in zip(declared.arguments, made, strict=True):
            for name in ("type", "required", "pattern", "minimum", "maximum", "help", "secret"):
                assert getattr(read, name) == getattr(real, name), f"{script.name}: {real.name}: {name}"
