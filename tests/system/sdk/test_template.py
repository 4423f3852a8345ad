"""The template builder in the real sandbox: what it makes of image disks of many kinds."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guest_disk import FILES, MIB, START, Disk, make_disk
from sandboxed import BUILDERS, GIB, SandboxedBuild, plan, volume

from pvccommon.declarations import read_declaration
from pvccommon.errors import PvcError
from pvccommon.storage.directory import DirectoryPool

pytestmark = pytest.mark.system

SCRIPT = (BUILDERS / "template.py").read_text()
ARGUMENTS = {argument.name: argument.default for argument in read_declaration(SCRIPT).arguments}
USERDATA = "#cloud-config\nusers: [default]\n"
SEED = {"pool": "vms", "volume": "web1_answers", "disk_id": "sdy", "size_bytes": 4 * MIB, "temporary": True}
SIZE = GIB // 2


@pytest.fixture
def build(pool: DirectoryPool, tmp_path: Path) -> Callable[..., SandboxedBuild]:
    """Makes an image of a raw disk, and a VM of it with the given arguments."""

    def run(disk: Path, *more: dict[str, Any], size: int = SIZE, **arguments: Any) -> SandboxedBuild:
        with disk.open("rb") as stream:
            pool.import_stream("image_1_sda", stream, disk.stat().st_size)
        pool.create_snapshot("image_1_sda", "base")
        pool.protect_snapshot("image_1_sda", "base")
        clone = volume("sda", size_bytes=size, source_volume="image_1_sda", source_snapshot="base")
        values = {"arguments": {**ARGUMENTS, **arguments}, "userdata": USERDATA, "cdroms": [SEED]}
        made = SandboxedBuild(pool, plan(volumes=[clone, *more], **values))
        made.domain_xml = made.run(SCRIPT)
        return made

    return run


def blank(tmp_path: Path, table: str, size_mib: int = 64) -> Path:
    disk = tmp_path / "odd.raw"
    disk.touch()
    with disk.open("r+b") as stream:
        stream.truncate(size_mib * MIB)
    if table:
        subprocess.run(["sfdisk", "--quiet", disk], input=table, text=True, check=True)
    return disk


def warnings(build: SandboxedBuild) -> list[str]:
    return [line for line in build.log.lines if line.startswith("<4>")]


def test_personalised(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    srv = volume("sdb", filesystem="ext4", mountpoint="/srv/data")
    made = build(make_disk(tmp_path), srv, personalise=True)
    disk = Disk(pool, "web1_sda")
    disk.check()
    assert warnings(made) == [] and "cdrom" not in made.domain_xml
    assert disk.root_mib() == 507
    root, grub = disk.table()
    assert "size=1038336," in root.replace(" ", "") and 'name="root"' in root
    assert "type=21686148" in grub
    read = {name: disk.read(name) for name in FILES}
    kept = ("/etc/os-release", "/usr/bin/cloud-init", "/usr/bin/ssh-keygen")
    assert {name: read.pop(name) for name in kept} == {name: FILES[name] for name in kept}
    assert read.pop("/etc/hostname") == "web1\n"
    assert read.pop("/etc/hosts") == "127.0.0.1 localhost\n127.0.1.1\tweb1\n10.0.0.9 backup\n"
    assert read.pop("/etc/machine-id") == ""
    fstab = (read.pop("/etc/fstab") or "").splitlines()
    assert fstab[0] == FILES["/etc/fstab"].strip() and " /srv/data ext4 " in fstab[1] and len(fstab) == 2
    assert set(read.values()) == {None}
    assert disk.read("/var/lib/cloud/seed/nocloud/user-data") == USERDATA
    metadata = json.loads(disk.read("/var/lib/cloud/seed/nocloud/meta-data") or "")
    assert metadata == {"instance-id": made.plan["vm_uuid"], "local-hostname": "web1"}


def test_seed(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    made = build(make_disk(tmp_path))
    disk = Disk(pool, "web1_sda")
    disk.check()
    assert warnings(made) == [] and "cdrom" in made.domain_xml
    assert disk.root_mib() == 507
    assert {name: disk.read(name) for name in FILES} == FILES
    assert not [line for line in made.log.lines if "mount" in line]
    with pool.open_device("web1_answers", read_only=True) as device:
        argv = ["blkid", "-p", "-o", "value", "-s", "LABEL", device.path]
        assert subprocess.check_output(argv, text=True) == "CIDATA\n"
        assert extract(device.path, "/user-data") == USERDATA
        assert json.loads(extract(device.path, "/meta-data"))["local-hostname"] == "web1"


def head(device: str, size: int) -> bytes:
    with open(device, "rb") as stream:
        return stream.read(size)


def extract(device: str, name: str) -> str:
    argv = ["xorriso", "-osirrox", "on", "-indev", f"stdio:{device}", "-concat", "append", "-", name, "--"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_mbr_keeps_boot_code_flag_and_id(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    table = "label: dos\nlabel-id: 0xcafe1234\nstart=2048, size=40960, type=83, bootable\n"
    disk = blank(tmp_path, table)
    with disk.open("r+b") as stream:
        stream.write(b"BOOTCODE")
    options = ["-F", "-q", "-E", f"offset={MIB}", str(disk), "20480k"]
    subprocess.run(["mkfs.ext4", *options], check=True)
    made = build(disk, grow="required")
    assert warnings(made) == []
    with pool.open_device("web1_sda", read_only=True) as device:
        shown = subprocess.check_output(["sfdisk", "--dump", device.path], text=True)
        assert head(device.path, 8) == b"BOOTCODE"
    assert "label-id: 0xcafe1234" in shown and "size=     1046528, type=83, bootable" in shown


def test_file_system_without_partitions(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    disk = blank(tmp_path, "")
    subprocess.run(["mkfs.ext4", "-F", "-q", disk], check=True)
    build(disk, grow="required")
    with pool.open_device("web1_sda", read_only=True) as device:
        shown = subprocess.check_output(["dumpe2fs", "-h", device.path], text=True, stderr=subprocess.DEVNULL)
        subprocess.run(["e2fsck", "-fn", device.path], check=True, capture_output=True)
    found = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    assert int(found["Block count"]) * int(found["Block size"]) == SIZE


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_only_the_guest_can_grow_gets_its_partition(
    pool: DirectoryPool, tmp_path: Path, build: Any, kind: str
) -> None:
    part = tmp_path / "part"
    part.touch()
    with part.open("r+b") as stream:
        stream.truncate(320 * MIB)
    subprocess.run([f"mkfs.{kind}", "-q", part], check=True)
    disk = blank(tmp_path, "label: gpt\nstart=2048, size=655360\n", 322)
    with disk.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(part.read_bytes())
    made = build(disk)
    assert ["the guest does it, by cloud-init" in line for line in warnings(made)] == [True]
    assert "size=     1044480," in Disk(pool, "web1_sda").table()[0]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("label: gpt\nstart=2048, size=20480\nstart=22528, size=4096, type=S\n", "no known file system"),
        (
            "label: dos\nstart=2048, size=20480\nstart=22528, type=5\nstart=24576, size=4096\n",
            "a logical one",
        ),
        ("label: sun\n", "of kind 'sun'"),
        ("label: gpt\n", "is empty"),
    ],
)
def test_what_is_not_understood_is_left_as_it_is(
    pool: DirectoryPool, tmp_path: Path, build: Any, table: str, reason: str
) -> None:
    made = build(blank(tmp_path, table))
    assert [reason in line for line in warnings(made)] == [True], made.log.lines
    with pool.open_device("web1_sda", read_only=True) as clone:
        content = head(clone.path, 64 * MIB)
    assert content == (tmp_path / "odd.raw").read_bytes()


def test_required_growth_ends_the_build(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    with pytest.raises(PvcError, match="no known file system"):
        build(blank(tmp_path, "label: gpt\nstart=2048, size=20480\n"), grow="required")


def test_damaged_file_system_is_left_to_the_guest(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    disk = make_disk(tmp_path)
    with disk.open("r+b") as stream:
        stream.seek(START + 4096)
        stream.write(b"\xff" * 65536)
    made = build(disk)
    assert ["its file system has errors" in line for line in warnings(made)] == [True]


def test_never_leaves_the_table(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    build(make_disk(tmp_path), grow="never")
    assert Disk(pool, "web1_sda").root_mib() == 59


def test_hostile_links_lead_nowhere_but_into_the_guest(
    pool: DirectoryPool, tmp_path: Path, build: Any
) -> None:
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    (etc / "hosts").symlink_to("/etc/passwd")
    (etc / "hostname").symlink_to("/run/secret")
    (etc / "systemd").symlink_to("/../../../../srv")
    subprocess.run(["mkfifo", str(etc / "fstab")], check=True)
    passwd = "root:x:0:0::/root:/bin/sh\n"
    files = {
        "/etc/passwd": passwd,
        "/usr/bin/cloud-init": "",
        "/usr/bin/ssh-keygen": "",
        "/srv/x": "",
        "/var/x": "",
    }
    build(make_disk(tmp_path, files), personalise=True)
    disk = Disk(pool, "web1_sda")
    disk.check()
    assert disk.read("/etc/passwd") == passwd
    assert disk.read("/etc/hosts") == f"{passwd}127.0.1.1\tweb1\n"
    assert "ssh-keygen -A" in (disk.read("/srv/system/ssh-host-keys.service") or "")


def test_no_root_is_said(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    with pytest.raises(PvcError, match="no root file system was found"):
        build(make_disk(tmp_path, {"/boot/vmlinuz": ""}), personalise=True)


def test_user_data_without_cloud_init_is_refused(pool: DirectoryPool, tmp_path: Path, build: Any) -> None:
    files = {name: text for name, text in FILES.items() if "cloud" not in name}
    with pytest.raises(PvcError, match="the image has no cloud-init"):
        build(make_disk(tmp_path, files), personalise=True)
