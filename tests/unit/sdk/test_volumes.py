"""Order and arithmetic of disks: layout, mounting, fstab; the broker and the tools are recorded, not run."""

from itertools import pairwise
from typing import Any

import pytest
from worker_end import volume

from vmbuilder import filesystem, partitions
from vmbuilder.context import Context, filesystem_arguments
from vmbuilder.errors import BrokerError, ValidationError
from vmbuilder.partitions import MIB, root_disk_layout, table_script
from vmbuilder.target import fstab
from vmbuilder.volumes import FileSystem, Volumes

GIB = 1024 * MIB


class Recorder:
    """The broker: notes every request; fails where told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_at = ""

    def __call__(self, verb: str, **arguments: Any) -> dict[str, Any]:
        where = arguments.get("path") or arguments.get("volume")
        if f"{verb} {where}" == self.fail_at:
            raise BrokerError("no")
        self.calls.append(f"{verb} {where}")
        nodes = [f"/dev/loop0p{part['number']}" for part in arguments.get("partitions", ())]
        return {"node": "/dev/loop0", "nodes": nodes, "size_bytes": 4 * GIB}


@pytest.fixture
def broker() -> Recorder:
    return Recorder()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What tools would have made, with nothing run."""
    done: list[str] = []

    def make(name: str, device: str, arguments: Any = ()) -> str:
        done.append(f"{name} {device}")
        return f"id-{name}"

    monkeypatch.setattr(filesystem, "make", make)
    monkeypatch.setattr(filesystem, "probe", lambda device: ("ext4", "clone-id"))
    monkeypatch.setattr(
        partitions, "write_table", lambda device, layout, scheme: done.append(f"table {device}")
    )
    monkeypatch.setattr("vmbuilder.volumes.device_size_bytes", lambda node: 4 * GIB)
    return done


def volumes(broker: Recorder, *documents: dict[str, Any]) -> Volumes:
    return Volumes(Context.from_json({"vm_name": "web1", "volumes": documents}).volumes, broker)


PLAN = (
    volume("sda", mountpoint="/var/lib/data", filesystem="xfs"),
    volume("sdb", mountpoint="/", filesystem="ext4"),
    volume("sdc", filesystem="swap"),
    volume("sdd", mountpoint="/var", filesystem="btrfs"),
    volume("sde"),
    volume("sdf", mountpoint="/srv", source_volume="golden"),
)


def test_all_volumes_from_nothing_to_mounted_and_back(broker: Recorder, made: list[str]) -> None:
    disks = volumes(broker, *PLAN)
    disks.create()
    disks.format()
    disks.mount("/tmp/target")
    assert made == [
        "xfs /dev/loop0",
        "table /dev/loop0",
        "ext4 /dev/loop0p3",
        "swap /dev/loop0",
        "btrfs /dev/loop0",
    ]
    assert broker.calls[10:12] == ["volume.clone web1_sdf", "volume.map web1_sdf"]
    mounts = [call.split()[1] for call in broker.calls if call.startswith("volume.mount ")]
    assert mounts == ["/tmp/target", "/tmp/target/srv", "/tmp/target/var", "/tmp/target/var/lib/data"]
    broker.calls.clear()
    disks.release()
    places = ("/tmp/target/var/lib/data", "/tmp/target/var", "/tmp/target/srv", "/tmp/target")
    assert broker.calls[:4] == [f"volume.unmount {path}" for path in places]
    assert broker.calls[4:] == [f"volume.unmap web1_sd{letter}" for letter in "fedcba"]


def test_release_with_nothing_made_asks_for_nothing(broker: Recorder) -> None:
    volumes(broker, *PLAN).release()
    assert broker.calls == []


def test_release_after_a_failure_gives_back_what_was_taken(broker: Recorder, made: list[str]) -> None:
    disks = volumes(broker, *PLAN)
    broker.fail_at = "volume.map web1_sdc"
    with pytest.raises(BrokerError):
        disks.create()
    broker.calls.clear()
    disks.release()
    assert broker.calls == ["volume.unmap web1_sdb", "volume.unmap web1_sda"]


def test_fstab_has_ids_outer_mount_points_first_and_swap_last(broker: Recorder, made: list[str]) -> None:
    disks = volumes(broker, *PLAN)
    disks.create()
    disks.format()
    assert fstab(disks.file_systems()).splitlines()[1:] == [
        "UUID=id-ext4 / ext4 defaults,errors=remount-ro 0 1",
        "UUID=clone-id /srv ext4 defaults 0 2",
        "UUID=id-btrfs /var btrfs defaults 0 0",
        "UUID=id-xfs /var/lib/data xfs defaults 0 0",
        "UUID=id-swap none swap sw 0 0",
    ]


def test_fstab_escapes_blanks() -> None:
    lines = fstab([FileSystem("vfat", "12AB-34CD", "/my disk", "/dev/x")]).splitlines()
    assert lines[1] == "UUID=12AB-34CD /my\\040disk vfat umask=0077 0 2"


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([volume("sda", mountpoint="/", filesystem="zfs")], "zfs is not one of"),
        ([volume("sda", mountpoint="/")], "without a file system"),
        ([volume("sda", mountpoint="srv", filesystem="ext4")], "absolute path"),
        ([volume("sda", mountpoint="/../x", filesystem="ext4")], "absolute path"),
        (
            [volume(d, mountpoint="/a", filesystem="ext4") for d in ("sda", "sdb")],
            "two disks have the mount point /a",
        ),
    ],
)
def test_a_plan_that_cannot_be_built_is_refused(broker: Recorder, documents: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        volumes(broker, *documents).check()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (volume("sda", mountpoint="/srv", filesystem="ext4"), "no disk with the mount point /"),
        (volume("sda", mountpoint="/", source_volume="golden"), "cannot be a clone"),
        (volume("sda", mountpoint="/", filesystem="vfat"), "needs a file system"),
        (volume("sda", mountpoint="/", filesystem="ext4", size_bytes=200 * MIB), "too small: 323 MiB"),
    ],
)
def test_a_root_disk_that_cannot_be_installed_is_refused(broker: Recorder, document: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        volumes(broker, document).check_root()


@pytest.mark.parametrize("size", [323 * MIB, GIB, 4 * GIB, 4 * GIB + 12345, 3 * 1024 * GIB + 512])
def test_layout_fills_the_disk_without_overlap(size: int) -> None:
    layout = root_disk_layout(size)
    assert [part.number for part in layout] == [1, 2, 3]
    assert [part.size_bytes for part in layout[:2]] == [MIB, 64 * MIB]
    for part, following in pairwise(layout):
        assert part.start_bytes + part.size_bytes == following.start_bytes
    assert all(part.start_bytes % MIB == 0 and part.size_bytes % MIB == 0 for part in layout)
    free = size - layout[-1].start_bytes - layout[-1].size_bytes
    assert MIB <= free < 2 * MIB, "room for the second table, and no more"


def test_table_in_sectors() -> None:
    assert table_script(root_disk_layout(4 * GIB)).splitlines()[3:] == [
        "1 : start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649",
        "2 : start=4096, size=131072, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        "3 : start=135168, size=8251392, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ()),
        (None, ()),
        ("-L=sysroot -m 1", ("-L", "sysroot", "-m", "1")),
        (["-L=a=b"], ("-L", "a=b")),
        (["-E", "lazy_itable_init=1"], ("-E", "lazy_itable_init=1")),
    ],
)
def test_filesystem_arguments(given: Any, words: tuple[str, ...]) -> None:
    assert filesystem_arguments(given) == words


@pytest.mark.parametrize("kind", filesystem.KINDS)
def test_our_identifier_comes_after_the_users_arguments(kind: str) -> None:
    identifier = filesystem.new_identifier(kind)
    command = filesystem.make_command(kind, "/dev/x", identifier, ["-L", "label"])
    assert command[-1] == "/dev/x"
    assert identifier.replace("-", "") in command[-2].replace("-", "")
    assert command.index("label") < len(command) - 2
