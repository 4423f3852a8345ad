"""The documentation names commands that exist, with options they have, and links that lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pvc.commands.task import TaskGroup
from pvc.main import cli

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_of(text: str) -> Iterator[str]:
    """Indented lines, and what stands between single backticks."""
    yield from re.findall(r"^    (?=\S)(.*)", text.replace("\\\n", ""), re.M)
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def command_lines(text: str) -> Iterator[list[str]]:
    for code in code_of(text):
        for part in re.split(r"\s#\s|\s{2,}(?=[a-z])|\s&&\s", code):
            words = shlex.split(part.replace("'", ""), comments=True) if part.count('"') % 2 == 0 else []
            if words[:1] == ["pvc"] and len(words) > 1 and words[1].isascii():
                yield words[1:]


def check_command(words: list[str]) -> None:
    """Raise ValueError for a word that should be a command, or an option, and is none."""
    command: click.Command = cli
    options = option_names(cli)
    for word in words:
        if word in ("…", "...") or word.startswith((">", "<", "|")):
            return
        if word.startswith("-"):
            if word.partition("=")[0] not in options:
                raise ValueError(f"{command.name} has no option {word}")
        elif isinstance(command, click.Group):
            word = word.rstrip(",;")
            if word not in command.commands:
                if isinstance(command, TaskGroup) or words[words.index(word) - 1 :][0].startswith("-"):
                    continue
                raise ValueError(f"{command.name} has no command {word}")
            command = command.commands[word]
            options |= option_names(command)


def option_names(command: click.Command) -> set[str]:
    own = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return own | {"-h", "--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    wrong = []
    for words in command_lines(page.read_text()):
        try:
            check_command(words)
        except ValueError as exc:
            wrong.append(f"pvc {shlex.join(words)}: {exc}")
    assert wrong == []


def test_commands_are_found_in_the_pages() -> None:
    assert sum(len(list(command_lines(page.read_text()))) for page in PAGES) > 25


@pytest.mark.parametrize(
    "words", ["vm nonsense", "vm list --nonsense", "provisioner template network nonsense"]
)
def test_a_wrong_command_is_seen(words: str) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        check_command(words.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", other.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_checkout_exist(page: Path) -> None:
    folders = "dev|tests|docs|daemon-common|provisioner-scripts|benchmarks|debian|node-daemon|api-daemon"
    for code in code_of(page.read_text()):
        for name in re.findall(rf"^(?:{folders})/[\w./-]*", code):
            assert (ROOT / name).exists(), name
