"""The program as a whole: help, start-up cost, completion, tables of the documentation."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from cli_fake_api import FakeApi
from click.shell_completion import ShellComplete

import pvc
from pvc.client import ApiClient
from pvc.commands.console import new_part
from pvc.errors import EXIT_CODES
from pvc.main import cli
from pvc.output import cell, printable, size_text, time_text

PACKAGE = Path(pvc.__file__).parent
OURS = {"pvcapid", "pvccommon", "pvcnoded", "vmbuilder"}
HEAVY = {"requests", "rich", "yaml", "urllib3", "ssl"}


def commands(group: click.Command, path: str = "pvc") -> Iterator[tuple[str, click.Command]]:
    yield path, group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, f"{path} {name}")


ALL = dict(commands(cli))


def test_help_imports_nothing_heavy_and_nothing_of_the_daemons() -> None:
    code = (
        "import sys; from pvc.main import run; code = run(['--help'])\n"
        "print(*sorted(name.partition('.')[0] for name in sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=60,
        check=True,
    )
    assert "Usage: pvc" in done.stdout
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & (HEAVY | OURS)


def test_the_package_imports_nothing_of_ours() -> None:
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    assert sources
    found = {name for source in sources for name in re.findall(r"^\s*(?:from|import) (\w+)", source, re.M)}
    assert not found & OURS


@pytest.mark.parametrize("path", sorted(ALL))
def test_every_command_and_option_is_explained(path: str) -> None:
    command = ALL[path]
    assert command.get_short_help_str(), path
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.name}"


@pytest.mark.parametrize("path", sorted(ALL))
def test_help_of_every_command(pvc_run: Any, path: str) -> None:
    result = pvc_run(*path.split()[1:], "--help")
    assert result.code == 0
    assert f"Usage: {path}" in result.out


def test_wrong_options_exit_2(pvc_run: Any) -> None:
    assert pvc_run("vm", "list", "--nonsense").code == 2
    assert pvc_run("nonsense").code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(pvc_run: Any, shell: str) -> None:
    result = pvc_run("completion", shell)
    assert result.code == 0
    assert "_PVC_COMPLETE" in result.out


def completions(arguments: list[str], incomplete: str) -> list[str]:
    complete = ShellComplete(cli, {}, "pvc", "_PVC_COMPLETE")
    return [item.value for item in complete.get_completions(arguments, incomplete)]


def test_names_are_completed(api: FakeApi, pvc_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = partial(ApiClient, transport=pvc_run.adapter)
    monkeypatch.setattr("pvc.context.Context.client_of", lambda _, connection: client(connection))
    api.answers["GET /provisioner/profile"] = [{"name": "debian12"}, {"name": "ubuntu"}]
    api.answers["GET /tasks"] = {"builds": [{"id": "b1"}]}
    assert completions(["provisioner", "create", "web1"], "deb") == ["debian12"]
    assert completions(["cluster", "task"], "b") == ["b1"]
    assert completions(["cluster", "task"], "c") == ["cancel"]
    assert completions(["-c"], "l") == ["local"]
    api.answers["GET /storage/ceph/volume"] = [{"name": "web1_sda"}]
    assert completions(["storage", "volume", "info", "vms"], "web") == ["web1_sda"]
    assert api.asked[-1].query == {"pool": ["vms"]}
    api.answers["GET /storage/ceph/snapshot"] = [{"snapshot": "base"}]
    assert completions(["storage", "volume", "snapshot", "remove", "vms", "golden"], "") == ["base"]
    assert api.asked[-1].query == {"pool": ["vms"], "volume": ["golden"]}


def test_completion_is_silent_when_the_api_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_API_URL", "not a url")
    assert completions(["vm", "info"], "") == []


def test_exit_codes_are_documented() -> None:
    page = PACKAGE.parent.parent / "docs" / "cli.md"
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", page.read_text(), re.M)
    documented = {kind: int(code) for code, kinds in rows for kind in re.findall(r"`([a-z-]+)`", kinds)}
    assert documented == EXIT_CODES


@pytest.mark.parametrize(
    ("seen", "now", "new"),
    [
        ("", "a\n", "a\n"),
        ("a\nb\n", "a\nb\n", ""),
        ("a\nb\n", "a\nb\nc", "c"),
        ("a\nb\nlog", "b\nlogin: ", "in: "),
        ("a\nb\n", "x\ny\n", "x\ny\n"),
        ("a\na\n", "a\na\na\n", "a\n"),
    ],
)
def test_new_part_of_a_console(seen: str, now: str, new: str) -> None:
    assert new_part(seen, now) == new


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (0, "0"),
        (1.50, "1.5"),
        ([1, "a"], "1, a"),
        ({"k": None}, "k=-"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_units() -> None:
    assert [size_text(size) for size in (0, 1023, 5 << 30, 3 << 41)] == ["0 B", "1023 B", "5 GiB", "6 TiB"]
    times = (0, 0.04, 0.25, 12.4, 185, 3723)
    assert [time_text(time) for time in times] == ["0.0 s", "<0.1 s", "0.2 s", "12 s", "3:05", "1:02:03"]


def test_printable_keeps_text_only() -> None:
    assert printable("a\x1b[1;31mb\x1b]0;t\x07c\x1b(Bd\r\ne\tf\x00\x9bg") == "abcd\ne\tf"


def test_text_that_cannot_be_encoded_is_shown_nevertheless(api: FakeApi, pvc_run: Any) -> None:
    argument = {"name": "motd", "type": "string", "default": "a\ud800b", "help": "odd \udfff"}
    found = {"name": "odd", "script": "x = '\ud800'", "arguments": [argument]}
    api.answers["GET /provisioner/script/odd"] = [found]
    for options in ((), ("--arguments",), ("--arguments", "--json")):
        result = pvc_run("provisioner", "script", "show", "odd", *options)
        assert result.code == 0
        assert r"\ud800" in result.out
    api.answers["GET /provisioner/script/odd"] = ({"message": "bad \ud800"}, 400)
    result = pvc_run("provisioner", "script", "show", "odd")
    assert result.code == 2
    assert r"bad \ud800" in result.err


def test_every_program_has_one_version() -> None:
    from pvc.version import VERSION
    from pvccommon import __version__

    assert VERSION == __version__
