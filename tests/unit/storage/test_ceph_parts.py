"""Parts of the rbd driver that need no cluster."""

import base64
import errno
import os
import sys
from pathlib import Path

import pytest

from pvccommon.config import parse_config
from pvccommon.errors import EnvironmentFault, Kind
from pvccommon.storage import ceph, pools_from_config, rbd_mapping
from pvccommon.storage.image_users import ProcessIdentity
from pvccommon.storage.pool import PoolSecret

KEY = base64.b64encode(b"0123456789abcdef").decode()


def keyring(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_key_is_found_by_its_account(tmp_path: Path) -> None:
    text = f'[client.other]\n\tkey = AAAA\n[client.pvc]\n\tkey = {KEY}\n\tcaps mon = "profile rbd"\n'
    assert ceph.read_key(keyring(tmp_path / "k", text), "client.pvc") == b"0123456789abcdef"


@pytest.mark.parametrize(
    "text", ["", "[client.pvc]\n", "[client.x]\nkey = AAAA\n", "[client.pvc]\nkey = %%\n", "rubbish"]
)
def test_keyring_without_the_key_is_an_error_that_shows_nothing_of_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(EnvironmentFault, match="has no key") as caught:
        ceph.read_key(keyring(tmp_path / "k", text), "client.pvc")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_keyring_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = keyring(tmp_path / "k", f"[client.pvc]\nkey = {KEY}\n", 0o644)
    with pytest.raises(EnvironmentFault, match="others can read"):
        ceph.read_key(path, "client.pvc")


def test_secret_prints_without_its_value() -> None:
    assert "0123" not in repr(PoolSecret("uuid", "client.pvc", b"0123456789abcdef"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, Kind.NO_SPACE),
        (errno.EDQUOT, Kind.NO_SPACE),
        (errno.ENOENT, Kind.NOT_FOUND),
        (errno.EEXIST, Kind.EXISTS),
        (errno.EBUSY, Kind.BUSY),
        (errno.EAGAIN, Kind.BUSY),
        (errno.ENOTEMPTY, Kind.WRONG_STATE),
        (errno.ETIMEDOUT, Kind.ENVIRONMENT),
        (errno.ESHUTDOWN, Kind.ENVIRONMENT),
        (errno.EACCES, Kind.ENVIRONMENT),
        (errno.EIO, Kind.ENVIRONMENT),
    ],
)
def test_errors_of_the_libraries_get_our_kinds(code: int, kind: Kind) -> None:
    rbd = pytest.importorskip("rbd")
    with pytest.raises(Exception) as caught, ceph.ceph_errors("do it"):
        raise rbd.OSError("it failed", code)
    assert caught.value.kind is kind  # type: ignore[attr-defined]
    assert caught.value.what == "do it"  # type: ignore[attr-defined]


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), ceph.ceph_errors("do it"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([("v2", "10.0.0.1:3300"), ("v1", "10.0.0.1:6789")], ("10.0.0.1", 6789)),
        ([("v2", "[fd00::1]:3300")], ("fd00::1", 3300)),
    ],
)
def test_addresses_of_monitors(addresses: list[tuple[str, str]], expected: tuple[str, int]) -> None:
    assert ceph._address([{"type": kind, "addr": address} for kind, address in addresses]) == expected


def test_process_identity_survives_its_text_and_tells_the_dead() -> None:
    me = ProcessIdentity.current()
    assert ProcessIdentity.parse(me.text) == me
    assert not me.is_dead
    assert ProcessIdentity(me.boot, me.pid, me.ticks + 1).is_dead
    assert not ProcessIdentity("0" * 32, me.pid, 1).is_dead, "of another host nothing is known"
    for text in ("", "x", "a-b-c", "a-1"):
        assert ProcessIdentity.parse(text) is None


def test_pool_of_the_configuration_connects_to_nothing() -> None:
    pools = {"fast": {"driver": "rbd", "ceph_pool": "ssd", "ceph_conf": "/nonexistent"}}
    config = parse_config({"storage": {"pools": pools, "mapping": "export"}})
    pool = pools_from_config(config)["fast"]
    assert (pool.driver, pool.mapping()) == ("rbd", "export")
    with pytest.raises(EnvironmentFault, match=r"client\.pvc"):
        pool.space()


def test_node_without_the_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rados", None)
    with pytest.raises(EnvironmentFault, match="python3-rados") as caught:
        ceph.connect(ceph.CephAccount("pvc", os.devnull))
    assert "apt install" in caught.value.hint


@pytest.mark.parametrize(("has_kernel", "chosen"), [(True, "kernel"), (False, "export")])
def test_mapping_is_the_kernel_s_where_it_can(
    monkeypatch: pytest.MonkeyPatch, has_kernel: bool, chosen: str
) -> None:
    monkeypatch.setattr(rbd_mapping, "kernel_has_rbd", lambda: has_kernel)
    assert rbd_mapping.choose("auto") == chosen
    assert rbd_mapping.choose("export") == "export"
    assert rbd_mapping.choose("kernel") == "kernel"


def test_devices_of_dead_processes_are_unmapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel keeps a mapping when its process dies; other pools' and living processes' stay."""
    for number, pool, name in ((0, "vms", "dead"), (1, "vms", "living"), (2, "other", "dead")):
        entry = tmp_path / "devices" / str(number)
        entry.mkdir(parents=True)
        for key, value in {"pool": pool, "name": name, "client_id": f"client{4000 + number}"}.items():
            (entry / key).write_text(f"{value}\n")
    commands: list[list[str]] = []
    monkeypatch.setattr(rbd_mapping, "KERNEL", tmp_path)
    monkeypatch.setattr(rbd_mapping, "run", lambda argv, **_: commands.append(argv))

    class Users:
        def is_abandoned(self, image_id: str, client: int) -> bool:
            return (image_id, client) == ("id of dead", 4000)

    removed = rbd_mapping.sweep_kernel_devices(Users(), "vms", lambda name: f"id of {name}")  # type: ignore[arg-type]
    assert removed == ["device /dev/rbd0 of vms/dead"]
    assert [argv[-1] for argv in commands] == ["/dev/rbd0"]
