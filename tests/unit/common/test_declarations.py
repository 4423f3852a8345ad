"""Reading a script's declaration from its source, and typing arguments by it."""

import itertools
import re
import time
from pathlib import Path

import pytest

from pvccommon import declarations
from pvccommon.declarations import (
    Argument,
    Declaration,
    mask_texts,
    read_declaration,
    split_secrets,
    type_arguments,
)
from pvccommon.errors import WrongInput
from pvccommon.patterns import Budget, fits

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
        "is not one of b",
    ),
    "pattern": (script('api_version = 1\narguments = (Argument("x", pattern="("),)'), "regular expression"),
    "unknown property": (script('api_version = 1\narguments = (Argument("x", colour=1),)'), "not a property"),
    "star": (script('api_version = 1\narguments = (Argument("x", **more),)'), "must be Argument"),
    "async": (script("api_version = 1\nasync def setup(self): ..."), "must not be async"),
    "signature": (script("api_version = 1\ndef setup(self, more): ..."), "no argument but self"),
    "cacheable": (script("api_version = 1\ncacheable = 'no'"), "must be True or False"),
    "too large": ("#" * 1_100_000, "is larger"),
    "no base": ("class VMBuilderScript:\n    api_version = 1\n", "must derive from VMBuilder"),
    "two classes": (script("api_version = 1") * 2, "defines 2 classes"),
    "surrogate": (f"{script('api_version = 1')}# \ud800", "does not compile"),
    "escaped nul": (script('"""Makes \\0."""\napi_version = 1'), "summary: holds a NUL"),
    **{
        f"{declared}": (script(f"api_version = 1\narguments = (Argument('x', {declared}),)"), reason)
        for declared, reason in (
            ("type='integer', minimum=3, maximum=2", "more than the maximum"),
            ("type='integer', minimum=3, default=2", "at least 3"),
            ("type='integer', maximum=3, default=4", "at most 3"),
            ("default='A', pattern='[a-z]'", "does not match"),
            ("type='list', default=('a', 'B'), pattern='[a-z]'", "does not match"),
            ("type='list', default=('a', 1)", "not of type list"),
            ("type='list', default=('a',), choices=('b',)", "not one of b"),
            ("type='integer', choices=('b',)", "choices: must be"),
            ("type='boolean', choices=(True,)", "choices: a boolean has none"),
            ("choices=(float,)", "literal"),
            ("choices=(1e999,)", "choices: must be"),
            ("default='a', required=True", "is required"),
            ("help='\\0'", "arguments[0].help: holds a NUL"),
            ("default='\\ud800'", "arguments[0].default: holds half"),
            ("choices=('a', '\\udfff')", "arguments[0].choices[1]: holds half"),
            ("type='integer', pattern='1'", "of type string or list"),
            ("pattern=b'1'", "must be a regular expression"),
            (f"pattern='{'a' * 2000}'", "longer than 1024"),
        )
    },
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
        ("needed=a\ud800", "surrogate"),
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


COSTLY = [
    r"(a+)+$",
    r"(a*)*$",
    r"((a*)*)*$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"a*a*a*a*a*a*a*a*$",
    r"(a{1,500}){1,500}$",
    r"(a?){1000}a{1000}",
    r"((a?){1000}){1000}",
    r"(?:){4294967294}",
    r"(.*)*x",
    "|".join(["(a+)+b"] * 100),
]


@pytest.mark.parametrize("pattern", COSTLY, ids=lambda pattern: pattern[:20])
@pytest.mark.parametrize("text", ["a" * 46 + "!", "a" * 1023 + "!", "a" * 1024], ids=len)
def test_no_pattern_takes_long(pattern: str, text: str) -> None:
    declaration = Declaration("", "", 1, False, True, "", (Argument("x", pattern=pattern),))
    begun = time.process_time()
    type_arguments(declaration, [f"x={text}"])
    # Takes some milliseconds; with backtracking most of these would take years. The processor's time, for a
    # machine may be busy with other things.
    assert time.process_time() - begun < 5


def test_all_patterns_of_a_request_share_one_budget() -> None:
    arguments = tuple(Argument(f"x{n}", pattern="(?:a|a)*b(?:a|a)*$|(a*)*(a*)*(a*)*b") for n in range(50))
    begun = time.monotonic()
    texts = [f"{argument.name}={'a' * 40}" for argument in arguments]
    type_arguments(Declaration("", "", 1, False, True, "", arguments), texts)
    assert time.monotonic() - begun < 10


def test_long_values_are_compared_with_no_pattern() -> None:
    declaration = Declaration("", "", 1, False, True, "", (Argument("x", pattern="a*"), Argument("y")))
    _, _, problems = type_arguments(declaration, [f"x={'a' * 1025}", f"y={'a' * 9999}"])
    assert [(problem.path, "1024" in problem.message) for problem in problems] == [("arguments.x", True)]


PATTERNS = [
    "", "a", "ab", "a|b", "a*", "a+b?", "(a|b)*", "(ab|b)+a?", "a{2}", "a{1,2}b{0,}", "(a*b)*", "(a|ab)(b|)",
    "[^a]*", "a.b", "(?s).*", ".*", "^a$", r"a\b.*", r"\Ba", r"\w+\s", r"a$\n?", r"(?m)^a$\n^b$", "a*?b",
    "(?P<n>a)+", "(?:a{2}){2}", "(a?){3}", "(^a|b)+", "($|a)*", r"a\Z", "[ab]{2,3}?",
]  # fmt: skip


TEXTS = ["".join(letters) for size in range(5) for letters in itertools.product("ab\n", repeat=size)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_they_mean_to_python(pattern: str) -> None:
    for text in TEXTS:
        assert fits(pattern, text, Budget()) == bool(re.fullmatch(pattern, text)), text


def test_patterns_of_our_builders_match_what_they_should() -> None:
    source = (BUILDERS / "debootstrap.py").read_text()
    declaration = read_declaration(source)
    texts = ["release=bookworm", "mirror=https://deb.example.org/debian", "user=me_1", "locale=de_DE.UTF-8"]
    packages = ",".join(f"lib-some-package{n}.{n}" for n in range(500))
    assert type_arguments(declaration, [*texts, f"packages={packages}"])[2] == []
    assert len(type_arguments(declaration, ["mirror=ftp://x", "user=-x"])[2]) == 2


def test_a_pattern_of_an_older_declaration_is_a_problem_not_a_crash() -> None:
    declaration = Declaration("", "", 1, False, True, "", (Argument("x", pattern="("),))
    assert "not a regular expression" in type_arguments(declaration, ["x=aa"])[2][0].message


def test_too_many_arguments() -> None:
    many = ", ".join(f"Argument('x{n}')" for n in range(declarations.MAX_ARGUMENTS + 1))
    with pytest.raises(WrongInput, match="more than 256"):
        read_declaration(script(f"api_version = 1\narguments = ({many})"))
