"""The state directory: where it may be, what it keeps."""

import os
import socket
from pathlib import Path

import pytest

from devstack import state
from devstack.state import State
from pvccommon.errors import WrongInput


@pytest.fixture
def place(tmp_path: Path) -> State:
    (tmp_path / "state").mkdir()
    result = State(tmp_path / "state")
    result.create()
    return result


def test_default_is_one_directory_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVC_STATE", raising=False)
    chosen = state.default_path()
    assert chosen.parent == state.DEFAULT_ROOT
    monkeypatch.setattr(state, "CHECKOUT", Path("/another/checkout"))
    assert state.default_path() != chosen


def test_environment_names_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_STATE", "/srv/stack")
    assert state.default_path() == Path("/srv/stack")


@pytest.mark.parametrize(
    "path", ["relative", "/run/stack", "/var/lib/libvirt/stack", "/srv/" + "x" * 80, "/srv/../a"]
)
def test_places_that_cannot_work_are_refused(path: str) -> None:
    with pytest.raises(WrongInput, match="use state directory"):
        state.check_place(Path(path))


def test_default_root_leaves_room_for_sockets() -> None:
    state.check_place(state.DEFAULT_ROOT / "test-12345678")


def test_every_level_must_let_others_through(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(WrongInput, match="other users cannot pass through"):
        state.check_searchable(tmp_path / "state")


def test_directories_are_made_passable_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        state.create_searchable(tmp_path / "a/b")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o711, 0o711]


def test_create_twice_keeps_settings(place: State) -> None:
    first = place.settings()
    place.create()
    assert place.settings() == first


def test_ports_differ_and_stay(place: State) -> None:
    place.choose_ports(running=False)
    ports = place.settings()["ports"]
    assert len(set(ports.values())) == len(state.PORTED)
    place.choose_ports(running=False)
    assert place.settings()["ports"] == ports


def test_port_taken_by_somebody_else_is_replaced_only_while_nothing_runs(place: State) -> None:
    place.choose_ports(running=False)
    port = place.port("redis")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        place.choose_ports(running=True)
        assert place.port("redis") == port
        place.choose_ports(running=False)
        assert place.port("redis") != port


def test_secret_file_is_private_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    before = os.umask(0)
    try:
        state.write_private(path, "word\n", (os.getuid(), os.getgid()))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    state.write_private(path, "other\n", (os.getuid(), os.getgid()))
    assert path.read_text() == "other\n"
