"""Disks of a build inside its sandbox: nodes, file systems, and what is on the disk afterwards."""

import os
import subprocess
from pathlib import Path

import pytest

from pvccommon.errors import Busy, EnvironmentFault, NotFound, WrongInput

from .conftest import Inside, Loop, LoopMaker, Opener, give

pytestmark = pytest.mark.system


def owner_on_disk(disk: Loop, path: str) -> tuple[int, int, str]:
    """User, group and mode of a file as it lies on an ext4 disk, read without mounting."""
    out = subprocess.check_output(
        ["debugfs", "-R", f"stat {path}", str(disk.image)], stderr=subprocess.DEVNULL, text=True
    )
    words = out.replace(":", " ").split()
    return (
        int(words[words.index("User") + 1]),
        int(words[words.index("Group") + 1]),
        words[words.index("Mode") + 1],
    )


def test_files_made_inside_belong_to_root_on_disk(inside: Inside, disk: Loop) -> None:
    give(inside, disk, "rbd/vms/web1_sda", "disk/by-uuid/0000-1111")
    inside.good("mkfs.ext4 -q /dev/rbd/vms/web1_sda && test -b /dev/disk/by-uuid/0000-1111")
    inside.sandbox.mount(disk.path, "/tmp/target/deep", "ext4")
    inside.good(
        "cd /tmp/target/deep && echo hello > file && chown 33:44 file && chmod 4755 file"
        " && mkdir dir && cp /bin/true dir/tool && setcap cap_net_raw+ep dir/tool && getcap dir/tool"
    )
    assert disk.path in inside.good("findmnt -n -o SOURCE /tmp/target/deep")
    inside.sandbox.unmount("/tmp/target/deep")
    assert owner_on_disk(disk, "/file") == (33, 44, "04755")
    assert owner_on_disk(disk, "/dir")[:2] == (0, 0)


def test_nothing_is_mounted_on_the_host(inside: Inside, disk: Loop) -> None:
    give(inside, disk)
    inside.good(f"mkfs.ext4 -q {disk.path}")
    before = Path("/proc/self/mountinfo").read_text()
    inside.sandbox.mount(disk.path, "/mnt", "ext4")
    inside.good("touch /mnt/x")
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_nested_mounts_of_several_disks(inside: Inside, loop: LoopMaker, filesystem: str) -> None:
    if not Path(f"/sbin/mkfs.{filesystem}").exists():
        pytest.skip(f"mkfs.{filesystem} is not installed")
    if filesystem not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"the kernel has no {filesystem}")
    root, home = loop(512), loop(512)
    for disk, path in ((root, "/mnt/t"), (home, "/mnt/t/home")):
        give(inside, disk)
        inside.good(f"mkfs.{filesystem} {disk.path}")
        inside.sandbox.mount(disk.path, path, filesystem)
    inside.good("touch /mnt/t/home/x && test $(stat -c %u /mnt/t/home/x) = 0")
    with pytest.raises(Busy):
        inside.sandbox.unmount("/mnt/t")
    inside.sandbox.unmount("/mnt/t/home")
    inside.sandbox.unmount("/mnt/t")
    with pytest.raises(NotFound):
        inside.sandbox.unmount("/mnt/t")


def test_unmounting_inside_frees_the_device(inside: Inside, disk: Loop) -> None:
    give(inside, disk)
    inside.good(f"mkfs.ext4 -q {disk.path}")
    inside.sandbox.mount(disk.path, "/mnt", "ext4")
    inside.good("touch /mnt/x && umount /mnt")
    inside.sandbox.remove_device(disk.name)
    # An exclusive open fails with EBUSY while any superblock holds the device.
    os.close(os.open(disk.path, os.O_RDWR | os.O_EXCL))


def test_the_end_of_the_sandbox_frees_mounted_devices(opened: Opener, disk: Loop) -> None:
    with opened() as inside:
        give(inside, disk)
        inside.good(f"mkfs.ext4 -q {disk.path}")
        inside.sandbox.mount(disk.path, "/mnt", "ext4")
        inside.good("touch /mnt/x; (cd /mnt; sleep 100 > held 2>&1 &)")
    os.close(os.open(disk.path, os.O_RDWR | os.O_EXCL))


def test_read_only_mount_stays_read_only(inside: Inside, loop: LoopMaker) -> None:
    disk = loop(filesystem="ext4")
    give(inside, disk)
    inside.sandbox.mount(disk.path, "/mnt", "ext4", read_only=True, options=["errors=remount-ro"])
    assert "Read-only" in inside.sh("touch /mnt/x").output
    assert inside.sh("mount -o remount,bind,rw /mnt").status != 0
    assert inside.sh("mount -o remount,rw /mnt").status != 0


def test_wrong_requests_are_named(inside: Inside, loop: LoopMaker) -> None:
    disk = loop()
    with pytest.raises(WrongInput, match="no such device"):
        inside.sandbox.mount(disk.path, "/mnt", "ext4")
    give(inside, disk)
    with pytest.raises(EnvironmentFault, match="mount ext4"):
        inside.sandbox.mount(disk.path, "/mnt", "ext4")
    with pytest.raises(WrongInput, match="proc"):
        inside.sandbox.mount(disk.path, "/mnt", "proc")
    with pytest.raises(WrongInput, match="journal_path"):
        inside.sandbox.mount(disk.path, "/mnt", "ext4", options={"journal_path": "/dev/vda"})
    with pytest.raises(WrongInput, match="absolute"):
        inside.sandbox.mount(disk.path, "mnt", "ext4")
    for name in ("../etc/x", "/dev/x", "a//b", "."):
        with pytest.raises(WrongInput):
            inside.sandbox.add_device(name, disk.major, disk.minor)
    with pytest.raises(WrongInput):
        inside.sandbox.add_device("x", disk.major, disk.minor, ["../../x"])


def test_mmdebstrap_builds_a_debian_root(opened: Opener, loop: LoopMaker) -> None:
    """The real thing: a minimal Debian on an ext4 disk, with the host's own package sources."""
    disk = loop(1024)
    with opened(network=True) as inside:
        give(inside, disk)
        inside.good(f"mkfs.ext4 -q {disk.path}")
        inside.sandbox.mount(disk.path, "/tmp/target", "ext4")
        sources = "cat /etc/apt/sources.list.d/*debian.sources /etc/apt/sources.list 2>/dev/null"
        inside.good(f"({sources}) | mmdebstrap --mode=root --variant=minbase bookworm /tmp/target -")
        inside.good("mount --bind /dev /tmp/target/dev && mount -t proc proc /tmp/target/proc")
        inside.good("chroot /tmp/target dpkg --audit && chroot /tmp/target apt-get update")
        inside.good("umount /tmp/target/proc /tmp/target/dev")
        inside.sandbox.unmount("/tmp/target")
    assert owner_on_disk(disk, "/etc/shadow") == (0, 42, "0640")
    assert owner_on_disk(disk, "/usr/bin/passwd") == (0, 0, "04755")
