"""Reading a script's declaration from its source, and typing arguments by it."""

from pathlib import Path

import pytest

from pvccommon.declarations import (
    Declaration,
    mask_texts,
    read_declaration,
    split_secrets,
    type_arguments,
)
from pvccommon.errors import WrongInput

HEAD = "from vmbuilder import Argument, VMBuilder\n"
BUILDERS = Path(__file__).parents[3] / "provisioner-scripts" / "builders"


def script(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"{HEAD}class VMBuilderScript(VMBuilder):\n{lines}\n"


GOOD = script('''"""Makes things.

More about it."""
api_version = 1
arguments = (
    Argument("release", default="bookworm", choices=("bookworm", "trixie"), help="which"),
    Argument("count", type="integer", default=2, minimum=1, maximum=9),
    Argument("fast", type="boolean", default=False),
    Argument("packages", type="list", default=("a",)),
    Argument("password", secret=True),
    Argument("needed", required=True, pattern="[a-z]+"),
)
def create(self): ...''')


def test_all_that_is_declared_is_read() -> None:
    found = read_declaration(GOOD)
    assert (found.summary, found.description, found.api_version) == ("Makes things.", "More about it.", 1)
    assert [argument.name for argument in found.arguments] == [
        "release", "count", "fast", "packages", "password", "needed",
    ]  # fmt: skip
    assert found.arguments[3].default == ["a"]
    assert Declaration.from_dict(found.to_dict()).to_dict() == found.to_dict()


def test_reading_does_not_run_the_script(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    read_declaration(f"open({str(trap)!r}, 'w')\n{GOOD}")
    assert not trap.exists()


@pytest.mark.parametrize("path", sorted(BUILDERS.glob("*.py")), ids=lambda path: path.name)
def test_our_own_builders_are_readable(path: Path) -> None:
    found = read_declaration(path.read_text())
    assert found.api_version == 1 and found.summary


BAD = {
    "syntax": ("def (", "does not compile"),
    "nul": ("a = 1\0", "does not compile"),
    "deep": ("(" * 3000 + ")" * 3000, "does not compile"),
    "no class": ("x = 1", "has no class VMBuilderScript"),
    "no version": (script("pass"), "api_version: is missing"),
    "version": (script("api_version = 99"), "must be one of 1"),
    "bool version": (script("api_version = True"), "must be one of 1"),
    "not a tuple": (script("api_version = 1\narguments = load()"), "must be a tuple"),
    "not an argument": (script('api_version = 1\narguments = ("x",)'), "must be Argument"),
    "not literal": (
        script('api_version = 1\narguments = (Argument("x", default=open("/etc/passwd")),)'),
        "literal",
    ),
    "bad name": (script('api_version = 1\narguments = (Argument("x y"),)'), "is not a name"),
    "twice": (script('api_version = 1\narguments = (Argument("x"), Argument("x"))'), "declared twice"),
    "type": (script('api_version = 1\narguments = (Argument("x", type="float"),)'), "must be one of string"),
    "default type": (
        script('api_version = 1\narguments = (Argument("x", type="integer", default="1"),)'),
        "not of type",
    ),
    "default choice": (
        script('api_version = 1\narguments = (Argument("x", default="a", choices=("b",)),)'),
        "choices",
    ),
    "pattern": (script('api_version = 1\narguments = (Argument("x", pattern="("),)'), "regular expression"),
    "unknown property": (script('api_version = 1\narguments = (Argument("x", colour=1),)'), "not a property"),
    "star": (script('api_version = 1\narguments = (Argument("x", **more),)'), "must be Argument"),
    "async": (script("api_version = 1\nasync def setup(self): ..."), "must not be async"),
    "signature": (script("api_version = 1\ndef setup(self, more): ..."), "no argument but self"),
    "cacheable": (script("api_version = 1\ncacheable = 'no'"), "must be True or False"),
    "too large": ("#" * 1_100_000, "is larger"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_scripts_are_refused_with_the_reason(name: str) -> None:
    source, reason = BAD[name]
    with pytest.raises(WrongInput) as caught:
        read_declaration(source)
    assert reason in caught.value.message


def test_every_problem_of_a_script_is_reported() -> None:
    with pytest.raises(WrongInput) as caught:
        read_declaration(script('arguments = (Argument("x y"), 5)\nasync def setup(self): ...'))
    assert len(caught.value.problems) == 4


def test_older_scripts_are_known_by_their_imports() -> None:
    source = "from daemon_lib.vmbuilder import VMBuilder\nclass VMBuilderScript(VMBuilder):\n    pass\n"
    found = read_declaration(source)
    assert found.legacy and found.api_version is None
    values, texts, problems = type_arguments(found, ["anything=a=b", "empty="])
    assert (values, problems) == ({"anything": "a=b", "empty": ""}, [])
    assert texts == values


def test_values_get_the_declared_types() -> None:
    values, _, problems = type_arguments(
        read_declaration(GOOD), ["count=3", "fast=Yes", "packages= b , c", "needed=abc", "count=4"]
    )
    assert not problems
    assert values == {
        "release": "bookworm",
        "count": 4,
        "fast": True,
        "packages": ["b", "c"],
        "password": None,
        "needed": "abc",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("release=sid", "is not one of"),
        ("count=x", "whole number"),
        ("count=0", "at least 1"),
        ("count=10", "at most 9"),
        ("fast=maybe", "neither true nor false"),
        ("needed=ABC", "does not match"),
        ("unknown=1", "unknown argument"),
        ("nothing", "has no '='"),
        ("=x", "is not the name"),
        ("needed=a\0", "NUL"),
    ],
)
def test_wrong_arguments_are_named(text: str, reason: str) -> None:
    _, _, problems = type_arguments(read_declaration(GOOD), ["needed=abc", text])
    assert any(reason in problem.message for problem in problems)


def test_missing_required_argument_is_named() -> None:
    _, _, problems = type_arguments(read_declaration(GOOD), [])
    assert [problem.path for problem in problems] == ["arguments.needed"]


def test_secrets_are_split_off_and_masked() -> None:
    declaration = read_declaration(GOOD)
    values, _, _ = type_arguments(declaration, ["needed=a", "password=hunter2"])
    shown, secrets = split_secrets(declaration, values)
    assert shown["password"] == "<redacted>" and secrets == {"password": "hunter2"}
    assert mask_texts(declaration, ["password=hunter2", "needed=a"]) == ["password=<redacted>", "needed=a"]
