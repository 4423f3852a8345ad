"""Choosing services, and what the command line refuses."""

import os
import subprocess
from pathlib import Path

import pytest

from devstack.cli import main
from devstack.stack import SERVICES, Stack, select
from devstack.state import CHECKOUT
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
    assert [part.name for part in select(names)] == chosen


@pytest.mark.parametrize(
    "names, chosen",
    [
        (("libvirt",), ["virtlogd", "virtlogd2", "libvirtd", "libvirtd2"]),
        (("api", "nodes"), ["api", "node", "node2"]),
        (("node",), ["node"]),
        (("hv1", "hv2"), ["node", "node2"]),
        (("libvirtd2", "redis"), ["redis", "libvirtd2"]),
    ],
)
def test_services_of_several_nodes(names: tuple[str, ...], chosen: list[str]) -> None:
    assert [part.name for part in select(names, nodes=2)] == chosen


def test_unknown_service_is_named_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="mysql") as caught:
        select(["redis", "mysql"])
    assert "postgresql" in caught.value.hint


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["up", "--nodes", "0"], "1 to 9"),
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


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error_to_show(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as gone:
        done = subprocess.run(
            [CHECKOUT / "dev/stack", "--state", tmp_path / "none", *arguments],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    ("program", "word"), [("pvc", "provisioner"), ("pvc-api", "token"), ("pvc-node", "check")]
)
def test_programs_of_the_checkout(program: str, word: str, tmp_path: Path) -> None:
    """They are found by PATH, also through a link, and read the configuration of the environment."""
    link = tmp_path / program
    link.symlink_to(CHECKOUT / "dev/bin" / program)
    environment = {"PATH": "/usr/bin:/bin", "PVC_CONFIG": "/nonexistent", "PVC_API_URL": "http://127.0.0.1:1"}
    done = subprocess.run([link, "--help"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert word in done.stdout


def test_daemons_read_the_configuration_of_the_environment(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PVC_CONFIG": "/nonexistent/pvc.conf"}
    for command in (["pvc-api", "token", "list"], ["pvc-node", "check"]):
        program = [CHECKOUT / "dev/bin" / command[0], *command[1:]]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "/nonexistent/pvc.conf" in done.stderr


def test_programs_without_a_stack_say_so(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PVC_STATE": str(tmp_path / "none")}
    for command in (["pvc", "vm", "list"], ["pvc-api", "token", "list"], ["pvc-node", "check"]):
        program = [CHECKOUT / "dev/bin" / command[0], *command[1:]]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "there is none" in done.stderr
        assert "Traceback" not in done.stderr
