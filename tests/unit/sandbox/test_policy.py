"""The policy table, and the pieces that turn it into arguments, filters and checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvccommon.errors import Busy, WrongInput
from pvcnoded.sandbox import limits, mounts, network, policy, seccomp, userns, volumes, walls
from pvcnoded.sandbox.devices import split_name
from pvcnoded.sandbox.sandbox import SandboxSpec, check_spec, parse_options

ROOT = Path(__file__).resolve().parents[3]
TABLES = (policy.HIDDEN, policy.WRITABLE, policy.WALLS, policy.BWRAP, policy.CAPABILITIES, policy.LIMITS,
          policy.DENIED_SYSCALLS, policy.DENIED_NETWORKS)  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_every_rule_is_named_once_and_has_a_reason(table: tuple[policy.Rule, ...]) -> None:
    assert table
    assert all(rule.what and rule.why for rule in table)
    assert len({rule.what for rule in table}) == len(table)


def test_the_security_page_holds_the_policy() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    assert policy.render_markdown().strip() in page, "run: python3 -m pvcnoded.sandbox.policy"


def test_no_path_is_both_hidden_and_writable() -> None:
    writable = [rule.what for rule in policy.WRITABLE]
    assert not [
        rule for rule in policy.HIDDEN if rule.what.startswith(tuple(f"{path}/" for path in writable))
    ]
    assert "/tmp" in writable  # walls.py hands everything out from there


def test_dangerous_capabilities_are_not_kept() -> None:
    kept = {rule.what for rule in policy.CAPABILITIES}
    assert not kept & {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_RESOURCE", "CAP_SYS_MODULE", "CAP_SYS_RAWIO"}


def test_bwrap_gets_every_argument_of_the_table() -> None:
    arguments = policy.bwrap_arguments(policy.DESCRIPTORS)
    assert arguments[:2] == ["--userns", str(policy.DESCRIPTORS["userns_fd"])]
    assert "--clearenv" in arguments and "--die-with-parent" in arguments
    assert arguments.count("--cap-add") == len(policy.CAPABILITIES)
    assert not [argument for argument in arguments if "{" in argument]


def test_descriptors_can_be_closed_by_a_shell() -> None:
    numbers = policy.DESCRIPTORS.values()
    assert sorted(numbers) == sorted(set(numbers)) and min(numbers) > 2 and max(numbers) < 10


def test_no_option_names_a_path_or_device_of_the_host() -> None:
    dangerous = {"journal_path", "journal_dev", "logdev", "rtdev", "device", "usrjquota", "grpjquota"}
    assert all(not options & dangerous for options in policy.FILESYSTEMS.values())


def test_the_filter_compiles() -> None:
    program = seccomp.filter_program()
    assert program and len(program) % 8 == 0  # struct sock_filter


def test_the_keeper_loads_without_our_other_packages_or_slow_modules() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'node-daemon')!r}); import pvcnoded.sandbox.keeper;"
        "print(*({'pvccommon', 'subprocess', 'dataclasses', 'asyncio', 'logging'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


@pytest.mark.parametrize("name", ["", "/dev/x", "../x", "a/../b", "a//b", ".", "a/", "x\0y"])
def test_device_names_that_could_lead_elsewhere(name: str) -> None:
    with pytest.raises(OSError, match="plain path"):
        split_name(name)


def test_device_names() -> None:
    assert split_name("rbd/vms/web1_sda") == ["rbd", "vms", "web1_sda"]


def test_mount_options() -> None:
    assert parse_options({"commit": "5"}) == {"commit": "5"}
    assert parse_options(["discard", "data=ordered"]) == {"discard": None, "data": "ordered"}
    volumes.check_options("ext4", {"discard": None})
    with pytest.raises(OSError, match="not allowed: journal_path"):
        volumes.check_options("ext4", {"journal_path": "/dev/vda", "discard": None})
    with pytest.raises(OSError, match="mounts only"):
        volumes.check_options("overlay", {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"first_uid": 1000}, "host's own users"),
        ({"environment": {"A=B": "x"}}, "A=B"),
        ({"environment": {"A": "x\0y"}}, "A"),
        ({"hidden_paths": ("etc",)}, "absolute"),
        ({"denied_networks": ("10.0.0.0/99",)}, "10.0.0.0/99"),
    ],
)
def test_a_bad_spec_is_refused(changes: dict[str, object], reason: str) -> None:
    values: dict[str, object] = {"build_id": "b", "first_uid": 100000, "sdk_zip": b"", **changes}
    with pytest.raises(WrongInput, match=reason):
        check_spec(SandboxSpec(**values))  # type: ignore[arg-type]


def test_covers_are_found_once_and_outermost_first(tmp_path: Path) -> None:
    (tmp_path / "secret" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    names = ["secret/below", "secret", "file", "link", "missing"]
    covers = walls.find_covers([str(tmp_path / name) for name in names], writable=["/run"])
    mine = [cover for cover in covers if cover.path.startswith(str(tmp_path))]
    assert mine == [walls.Cover(str(tmp_path / "file"), False), walls.Cover(str(tmp_path / "secret"), True)]
    assert not [cover for cover in covers if cover.path.startswith("/run/")]


def test_the_whole_file_system_cannot_be_hidden() -> None:
    with pytest.raises(OSError, match="whole file system"):
        walls.find_covers(["/"], [])


def test_networks_are_denied_once_and_without_loopback() -> None:
    denied = network.denied_networks(["198.51.100.7/24", "198.51.100.0/24", "2001:db8::/32"])
    assert denied.count("198.51.100.0/24") == 1
    assert "169.254.0.0/16" in denied
    assert not [net for net in denied if net.startswith("127.") or ":" in net]


def test_slirp_is_told_to_be_strict() -> None:
    arguments = network.slirp_arguments(5, 6, 7)
    assert {"--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--exit-fd=7"} <= set(
        arguments
    )


def test_control_groups_are_found_where_they_are(tmp_path: Path) -> None:
    assert limits.find_hierarchy("memory", str(tmp_path)) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "cgroup.procs").touch()
    assert limits.find_hierarchy("memory", str(tmp_path)) == limits.Hierarchy(
        str(tmp_path / "memory"), unified=False
    )
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert limits.find_hierarchy("memory", str(tmp_path)) == limits.Hierarchy(str(tmp_path), unified=True)


def test_mount_points_with_blanks_are_understood() -> None:
    assert mounts._unescape(rb"/a\040b\134c") == b"/a b\\c"
    assert "/" in mounts.mount_points()


def test_slots_are_taken_from_the_lowest_and_given_back(tmp_path: Path) -> None:
    with userns.uid_slot(str(tmp_path)) as first:
        with userns.uid_slot(str(tmp_path)) as second:
            assert (first, second) == (0, 1)
        with userns.uid_slot(str(tmp_path)) as third:
            assert third == 1
    assert userns.range_start(100000, 2) == 231072


def test_no_slot_left_says_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns, "MAX_SLOTS", 1)
    with userns.uid_slot(str(tmp_path)):
        with pytest.raises(Busy), userns.uid_slot(str(tmp_path)):
            pass


def test_the_resolver_is_the_sandboxs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "resolv.conf"
    settings.write_text("# comment\nnameserver 127.0.0.53\nsearch example.org\noptions edns0\n")
    monkeypatch.setattr(walls, "RESOLV_CONF", os.fspath(settings))
    assert walls._resolver_settings() == "nameserver 10.0.2.3\nsearch example.org\noptions edns0\n"
