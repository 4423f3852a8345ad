"""Choosing services, and what the command line refuses."""

from pathlib import Path

import pytest

from devstack.cli import main
from devstack.stack import SERVICES, Stack, select
from pvccommon.errors import NotFound, WrongState


@pytest.mark.parametrize(
    "names, chosen",
    [
        ((), [cls.name for cls in SERVICES]),
        (("libvirt",), ["virtlogd", "libvirtd"]),
        (("ceph",), ["ceph-mon", "ceph-mgr", "ceph-osd"]),
        (("redis", "postgresql"), ["postgresql", "redis"]),
        (("node", "libvirtd"), ["libvirtd", "node"]),
    ],
)
def test_services_are_chosen_in_the_order_of_starting(names: tuple[str, ...], chosen: list[str]) -> None:
    assert [cls.name for cls in select(names)] == chosen


def test_unknown_service_is_named_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="mysql") as caught:
        select(["redis", "mysql"])
    assert "postgresql" in caught.value.hint


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["up", "--nodes", "3"], "one node"),
        (["up", "--set", "nonsense"], "SECTION.KEY=VALUE"),
        (["env"], "there is none"),
        (["logs", "redis"], "there is none"),
        (["logs", "nothing"], "there is none of that name"),
    ],
)
def test_command_that_cannot_work_says_why(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--state", str(tmp_path / "none"), *arguments]) == 1
    shown = capsys.readouterr().err
    assert words in shown and "hint: " in shown
    assert not (tmp_path / "none").exists()


def test_status_of_no_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(tmp_path / "none"), "status"]) == 3
    assert "there is none" in capsys.readouterr().out


def test_environment_needs_a_stack(tmp_path: Path) -> None:
    with pytest.raises(WrongState):
        Stack(tmp_path / "none").environment()
