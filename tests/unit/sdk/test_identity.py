"""A system that ran elsewhere becomes this VM: names, machine ids, cloud-init."""

import json
from pathlib import Path

import pytest

from vmbuilder import cloud_init, identity
from vmbuilder.cloud_init import Instance
from vmbuilder.target import Target
from vmbuilder.volumes import FileSystem


@pytest.fixture
def target(tmp_path: Path) -> Target:
    made = Target(tmp_path)
    made.write("/etc/hostname", "golden\n")
    return made


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("127.0.1.1 golden\n", "127.0.1.1\tweb1\n"),
        ("127.0.1.1 golden.example.org golden\n", "127.0.1.1\tweb1\n"),
        ("# golden\n127.0.0.1 localhost", "# golden\n127.0.0.1 localhost\n127.0.1.1\tweb1\n"),
        ("10.0.0.9 goldeneye other\n", "10.0.0.9 goldeneye other\n127.0.1.1\tweb1\n"),
        ("", "127.0.1.1\tweb1\n"),
    ],
)
def test_new_name_takes_the_place_of_the_old(target: Target, before: str, after: str) -> None:
    target.write("/etc/hosts", before)
    identity.rename(target, "web1")
    assert target.path("/etc/hostname").read_text() == "web1\n"
    assert target.path("/etc/hosts").read_text() == after


def test_localhost_stays_when_the_old_name_was_that(target: Target) -> None:
    target.write("/etc/hostname", "localhost\n")
    target.write("/etc/hosts", "127.0.0.1 localhost\n")
    identity.rename(target, "web1")
    assert target.path("/etc/hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1\tweb1\n"


def test_cloud_init_begins_anew_with_its_own_data(target: Target) -> None:
    for name in ("instances/i-old/user-data.txt", "data/instance-id", "sem/x", "seed/nocloud/vendor-data"):
        target.write(f"/var/lib/cloud/{name}", "old")
    target.link("/var/lib/cloud/instance", "/var/lib/cloud/instances/i-old")
    target.write("/etc/cloud/cloud-init.disabled", "")
    target.write("/etc/netplan/50-cloud-init.yaml", "old card")
    target.write("/etc/netplan/01-own.yaml", "kept")
    target.write("/etc/cloud/cloud.cfg.d/90_builder.cfg", "kept")
    cloud_init.renew(target, Instance("id-1", "web1", "#cloud-config\n"))
    left = {str(path.relative_to(target.root)) for path in target.root.rglob("*") if not path.is_dir()}
    assert left == {
        "etc/hostname",
        "etc/netplan/01-own.yaml",
        "etc/cloud/cloud.cfg.d/90_builder.cfg",
        "etc/cloud/cloud.cfg.d/91_seed.cfg",
        "var/lib/cloud/seed/nocloud/meta-data",
        "var/lib/cloud/seed/nocloud/user-data",
    }
    metadata = json.loads(target.path("/var/lib/cloud/seed/nocloud/meta-data").read_text())
    assert metadata == {"instance-id": "id-1", "local-hostname": "web1"}


def test_state_that_is_a_link_is_removed_and_not_what_it_leads_to(target: Target, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    target.link("/var/lib/cloud/instances", str(outside))
    cloud_init.renew(target, Instance("id-1", "web1"))
    assert (outside / "file").read_text() == "kept" and not target.has("/var/lib/cloud/instances")


def test_mounts_are_added_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("vmbuilder.chroot.entered", lambda root: nullcontext())
    monkeypatch.setattr(identity, "Target", lambda _: target)
    target.write("/etc/fstab", "LABEL=root / ext4 defaults 0 1")
    disks = [FileSystem("ext4", "id-a", "/srv", "/dev/x"), FileSystem("ext4", "id-b", "/", "/dev/y")]
    for _ in range(2):
        identity.add_mounts(target.root, disks)
    lines = target.path("/etc/fstab").read_text().splitlines()
    assert lines == ["LABEL=root / ext4 defaults 0 1", "UUID=id-a /srv ext4 defaults 0 2"]
    assert target.path("/srv").is_dir()


def test_guest_that_was_stopped_while_it_made_host_keys_makes_the_rest_later(target: Target) -> None:
    target.write("/usr/bin/ssh-keygen", "")
    target.reset_identity()
    unit = target.read_text("/etc/systemd/system/ssh-host-keys.service")
    for kind in (
        "rsa",
        "ed25519",
    ):  # the first and the last that are made; `|`: one that is missing is enough
        assert f"ConditionPathExists=|!/etc/ssh/ssh_host_{kind}_key\n" in unit
