"""Disks of every kind, made from inside the real sandbox."""

import json
import subprocess
from pathlib import Path

import pytest
from sandboxed import BUILDERS, GIB, SandboxedBuild, plan, volume

from pvccommon.errors import PvcError
from pvccommon.storage.directory import DirectoryPool

pytestmark = pytest.mark.system

MIB = 1024**2

FILLER = '''
import os
import subprocess
from vmbuilder import VMBuilder, bootloader, chroot
from vmbuilder.target import Target

class VMBuilderScript(VMBuilder):
    """Formats and mounts everything, and looks at the result."""

    api_version = 1
    arguments = ()

    def setup(self):
        self.volumes.check()
        self.volumes.check_root()

    def prepare(self):
        self.volumes.create()
        self.volumes.format()
        self.volumes.mount("/tmp/target")

    def install(self):
        mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
        print("MOUNTS", *[path for path in mounts if path.startswith("/tmp/target")])
        target = Target("/tmp/target")
        target.write_fstab(self.volumes.file_systems())
        target.set_hostname(self.vm_name)
        target.reset_identity()
        for line in target.path("/etc/fstab").read_text().splitlines()[1:]:
            identifier = line.split()[0].removeprefix("UUID=")
            print("FSTAB", *line.split()[1:], os.path.exists("/dev/disk/by-uuid/" + identifier))
        target.write("/srv/www/data/deep", "kept")
        root = self.volumes.root
        bootloader.write_efi_partition(root.partition_nodes[2], root, target.path("/etc/hosts"))
        with chroot.system_mounts("/tmp/target"):
            assert os.path.exists("/tmp/target/dev/null") and os.path.exists("/tmp/target/proc/self")
        assert not os.listdir("/tmp/target/proc")
        subprocess.Popen(["setsid", "sleep", "600"], cwd="/tmp/target/srv", stdout=subprocess.DEVNULL)

    def cleanup(self):
        self.volumes.release()
        left = [line for line in open("/proc/self/mountinfo") if " /tmp/target" in line]
        print("LEFT", left, os.path.exists(self.volumes[0].device))
'''

DISKS = [
    volume("sda", filesystem="ext3", mountpoint="/srv/www/data", filesystem_args=["-L=data", "-m=1"]),
    volume("sdb", filesystem="ext4", mountpoint="/", size_bytes=2 * GIB),
    volume("sdc", filesystem="swap"),
    volume("sdd", filesystem="xfs", mountpoint="/srv"),
    volume("sde", filesystem="btrfs", mountpoint="/srv/www"),
    volume("sdf", filesystem="vfat"),
    volume("sdg"),
]


def kept(build: SandboxedBuild, word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in build.log.lines if line.startswith(f"{word} ")]


def image(pool: DirectoryPool, name: str) -> Path:
    return Path(pool.disk_source(name).path)


def test_partitions_file_systems_mounts_and_back(pool: DirectoryPool) -> None:
    build = SandboxedBuild(pool, plan(volumes=DISKS))
    build.run(FILLER)
    below = ("", "/srv", "/srv/www", "/srv/www/data")
    assert kept(build, "MOUNTS") == [" ".join(f"/tmp/target{path}" for path in below)]
    assert kept(build, "FSTAB") == [
        "/ ext4 defaults,errors=remount-ro 0 1 True",
        "/srv xfs defaults 0 0 True",
        "/srv/www btrfs defaults 0 0 True",
        "/srv/www/data ext3 defaults 0 2 True",
        "none swap sw 0 0 True",
    ]
    assert kept(build, "LEFT") == ["[] False"]
    assert any("ended processes: [" in line for line in build.log.lines)
    table = json.loads(subprocess.check_output(["sfdisk", "--json", image(pool, "web1_sdb")]))[
        "partitiontable"
    ]
    assert [part["start"] for part in table["partitions"]] == [2048, 4096, 135168]
    efi = ["mdir", "-b", "-i", f"{image(pool, 'web1_sdb')}@@2M", "::/EFI/BOOT"]
    assert "BOOTX64.EFI" in subprocess.check_output(efi, text=True)
    types = [probe(image(pool, f"web1_sd{letter}"), "TYPE") for letter in "acdefg"]
    assert types == ["ext3", "swap", "xfs", "btrfs", "vfat", ""]
    assert probe(image(pool, "web1_sda"), "LABEL") == "data"


def probe(path: Path, tag: str) -> str:
    found = subprocess.run(["blkid", "-p", "-o", "value", "-s", tag, path], capture_output=True, text=True)
    return found.stdout.strip()


def test_clone_keeps_its_file_system_and_content(pool: DirectoryPool) -> None:
    SandboxedBuild(pool, plan(volumes=[volume("sda", filesystem="ext4")])).run(
        (BUILDERS / "noop.py").read_text()
    )
    source = image(pool, "web1_sda")
    subprocess.run(["mkfs.ext4", "-q", "-L", "golden", source], check=True)
    clone = volume("sdb", size_bytes=None, source_volume="web1_sda", mountpoint="/srv")
    script = FILLER.split("    def install")[0].replace("self.volumes.check_root()", "pass") + (
        "    def install(self):\n"
        "        clone, = self.volumes\n"
        "        print('FOUND', clone.size_bytes, clone.content.kind, os.listdir('/tmp/target/srv'))\n"
        "    def cleanup(self):\n        self.volumes.release()\n"
    )
    build = SandboxedBuild(pool, plan(volumes=[clone]))
    build.run(script)
    assert kept(build, "FOUND") == [f"{GIB} ext4 ['lost+found']"]


def test_failing_in_the_middle_of_preparing_releases_everything(pool: DirectoryPool) -> None:
    disks = [*DISKS[:3], volume("sdd", filesystem="xfs", mountpoint="/srv", size_bytes=16 * MIB)]
    build = SandboxedBuild(pool, plan(volumes=disks))
    with pytest.raises(PvcError, match=r"mkfs.xfs exited with 1"):
        build.run(FILLER)
    assert kept(build, "LEFT") == ["[] False"]


def test_cleanup_after_nothing_was_done(pool: DirectoryPool) -> None:
    build = SandboxedBuild(pool, plan(volumes=DISKS))
    with build.opened((BUILDERS / "debootstrap.py").read_text()):
        build.stage("cleanup")
