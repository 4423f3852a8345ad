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
    assert config.node.name == "hv1"
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


def test_nodes_share_nothing_but_database_queue_and_ceph(tmp_path: Path) -> None:
    place = State(tmp_path)
    place.create(nodes=2)
    place.choose_ports(running=False)
    first, second = (parse_config(configuration.document(place, "/secrets", node)) for node in (1, 2))
    assert (first.node.name, second.node.name) == ("hv1", "hv2")
    assert (first.database, first.queue) == (second.database, second.queue)
    assert first.hypervisor.libvirt_uri != second.hypervisor.libvirt_uri
    assert first.hypervisor.console_directory != second.hypervisor.console_directory
    assert first.state_directory != second.state_directory
    assert first.storage.pools["vms"].path != second.storage.pools["vms"].path
    assert libvirt.host_uuid(place, 1) != libvirt.host_uuid(place, 2)


def test_number_of_nodes_is_remembered_and_grows_only(tmp_path: Path) -> None:
    place = State(tmp_path)
    assert place.nodes == 1
    place.create()
    place.create(nodes=3)
    place.create()
    assert place.nodes == 3
    with pytest.raises(WrongState, match="it has 3 nodes"):
        place.create(nodes=2)


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
