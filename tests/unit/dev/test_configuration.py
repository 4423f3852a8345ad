"""The generated configuration is one that the daemons accept."""

from pathlib import Path

import pytest

from devstack import configuration, libvirt
from devstack.cli import overrides
from devstack.state import State
from pvccommon.config import parse_config
from pvccommon.errors import WrongInput, WrongState


@pytest.fixture
def place(tmp_path: Path) -> State:
    result = State(tmp_path)
    result.create()
    result.choose_ports(running=False)
    return result


def test_daemons_accept_it(place: State) -> None:
    config = parse_config(configuration.document(place, "/secrets"))
    assert config.node.name == configuration.NODE
    assert config.api.listen.address == "127.0.0.1"
    assert config.hypervisor.libvirt_uri == libvirt.uri(place)
    assert config.database.password_file == "/secrets/database.password"
    assert config.storage.pools["vms"].path == str(place / "pools/vms")
    assert config.networks["upstream"].user


def test_pool_can_be_one_of_ceph(tmp_path: Path) -> None:
    place = State(tmp_path)
    place.create("ceph")
    place.choose_ports(running=False)
    pool = parse_config(configuration.document(place, "/secrets")).storage.pools["vms"]
    assert (pool.driver, pool.ceph_pool, pool.ceph_user) == ("rbd", "vms", "pvc")
    assert pool.ceph_conf == str(place / "ceph/ceph.conf")
    with pytest.raises(WrongState, match="kind ceph"):
        place.create("directory")
    place.create()
    assert place.pool_kind == "ceph"


def test_scripts_do_not_see_the_state(place: State) -> None:
    assert parse_config(configuration.document(place, "/secrets")).sandbox.hidden_paths == (str(place.path),)


def test_overrides_win_section_by_section(place: State) -> None:
    settings = place.settings()
    settings["overrides"] = {"storage": {"pools": {"fast": {"format": "qcow2"}}}, "builds": {"lease_s": 5}}
    place.save_settings(settings)
    config = parse_config(configuration.document(place, "/secrets"))
    assert set(config.storage.pools) == {"vms", "fast"}
    assert config.builds.lease_s == 5


@pytest.mark.parametrize(
    "assignments, expected",
    [
        (["builds.lease_s=5"], {"builds": {"lease_s": 5}}),
        (["a.b.c=true", "a.d=[x, y]"], {"a": {"b": {"c": True}, "d": ["x", "y"]}}),
        (["a.b=x=y"], {"a": {"b": "x=y"}}),
    ],
)
def test_overrides_of_the_command_line(assignments: list[str], expected: dict[str, object]) -> None:
    assert overrides(assignments) == expected


@pytest.mark.parametrize("assignment", ["builds", "=5", "a..b=1"])
def test_malformed_override_is_refused(assignment: str) -> None:
    with pytest.raises(WrongInput):
        overrides([assignment])
