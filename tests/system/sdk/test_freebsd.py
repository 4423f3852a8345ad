"""The freebsd builder: a disk made in the sandbox out of small distribution sets, and read back."""

import hashlib
import io
import json
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sandboxed import BUILDERS, SandboxedBuild, plan, volume
from ufs2_reader import Ufs2

from pvccommon.declarations import read_declaration, type_arguments
from pvccommon.errors import PvcError
from pvccommon.storage.directory import DirectoryPool

pytestmark = pytest.mark.system

SCRIPT = (BUILDERS / "freebsd.py").read_text()
MIB = 1024**2
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000 me@desk"
HASH = "$6$saltsaltsalt$0123456789"
LOGIN = [f"ssh_keys={KEY}", f"root_password_hash={HASH}", "timezone=Europe/Vienna"]
BOOT_CODE = bytes(range(256)) * 2
# Larger than twelve blocks, so that it has indirect ones.
KERNEL = hashlib.sha512(b"kernel").digest() * 8192 * 4
LOADER = b"MZ" + bytes(1000)
PASSWORDS = "# comment\nroot::0:0::0:0:Charlie &:/root:/bin/sh\nops:*:1001:1001::0:0:Ops:/home/ops:/bin/sh\n"
BASE: dict[str, bytes] = {
    "./boot/pmbr": BOOT_CODE,
    "./boot/gptboot": b"gptboot" * 3000,
    "./boot/loader.efi": LOADER,
    "./etc/master.passwd": PASSWORDS.encode(),
    "./etc/passwd": b"# comment\nroot:*:0:0:Charlie &:/root:/bin/sh\n",
    "./etc/pwd.db": b"stale",
    "./etc/spwd.db": b"stale: root has no password",
    "./etc/rc": b"#!/bin/sh\n",
    "./etc/ssh/sshd_config": b"#PermitRootLogin no\n",
    "./sbin/init": b"init",
    "./usr/bin/su": b"su",
    "./usr/share/zoneinfo/Europe/Vienna": b"TZif",
    "./home/ops/mine": b"mine",
    "./usr/share/many/" + "n" * 200: b"",
} | {f"./usr/share/many/{number}": b"x" * number for number in range(700)}


def distribution_set(files: dict[str, bytes], more: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", preset=0, format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o4555 if name.endswith("/su") else 0o644
            member.uid = member.gid = 1001 if "/ops/" in name else 0
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return stream.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def directory(name: str, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    return member


@dataclass(frozen=True)
class Sets:
    """The sets, in a directory that a sandbox sees."""

    directory: Path

    def arguments(self, base: str = "base", kernel: str = "kernel") -> list[str]:
        found: list[str] = []
        for name, file in (("base", base), ("kernel", kernel)):
            path = self.directory / f"{file}.txz"
            found += [f"{name}={path}", f"{name}_sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"]
        return found


@pytest.fixture(scope="module")
def sets() -> Iterator[Sets]:
    place = Path(tempfile.mkdtemp(prefix="tiny-sets-", dir="/var/lib"))
    try:
        place.chmod(0o755)
        links = (
            link("./etc/unbound", "/var/unbound"),
            link("./sys", "usr/src/sys"),
            link("./usr/bin/also-su", "./usr/bin/su", tarfile.LNKTYPE),
            directory("./tmp", 0o1777),
            directory("./root", 0o750),
            directory("./dev", 0o555),
        )
        (place / "base.txz").write_bytes(distribution_set(BASE, links))
        (place / "kernel.txz").write_bytes(distribution_set({"./boot/kernel/kernel": KERNEL}))
        (place / "climbing.txz").write_bytes(distribution_set({"../../etc/evil": b"evil"}))
        yield Sets(place)
    finally:
        shutil.rmtree(place)


def prepared(pool: DirectoryPool, *arguments: str, **changes: object) -> SandboxedBuild:
    typed, _, problems = type_arguments(read_declaration(SCRIPT), list(arguments))
    assert not problems
    disks = [volume("sda", size_bytes=400 * MIB, filesystem="ext4", mountpoint="/"), volume("sdb")]
    return SandboxedBuild(pool, plan(**{"arguments": typed, "volumes": disks, **changes}))


@pytest.fixture(scope="module")
def built(sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> SandboxedBuild:
    build = prepared(DirectoryPool("vms", tmp_path_factory.mktemp("pool")), *sets.arguments(), *LOGIN)
    build.run(SCRIPT)
    return build


def image(build: SandboxedBuild) -> Path:
    return Path(build.pool.disk_source("web1_sda").path)


def table(build: SandboxedBuild) -> list[dict[str, object]]:
    found = json.loads(subprocess.check_output(["sfdisk", "--json", image(build)]))
    parts: list[dict[str, object]] = found["partitiontable"]["partitions"]
    return parts


def partition(build: SandboxedBuild, number: int) -> bytes:
    part = table(build)[number - 1]
    start, size = (int(str(part[key])) * 512 for key in ("start", "size"))
    with image(build).open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


@pytest.fixture(scope="module")
def ufs(built: SandboxedBuild) -> Ufs2:
    return Ufs2(partition(built, 3))


def test_partitions_are_of_freebsd(built: SandboxedBuild) -> None:
    assert [(part["type"], part["name"]) for part in table(built)] == [
        ("83BD6B9D-7F41-11DC-BE0B-001560B84F0F", "gptboot0"),
        ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "efiboot0"),
        ("516E7CB6-6ECF-11D6-8FF8-00022D09712B", "rootfs"),
    ]
    assert int(str(table(built)[0]["size"])) * 512 <= 545 * 1024, "pmbr loads no more"


def test_boot_code_is_where_a_bios_looks(built: SandboxedBuild) -> None:
    with image(built).open("rb") as stream:
        first = stream.read(512)
    assert first[:440] == BOOT_CODE[:440]
    assert first[446 + 4] == 0xEE, "the protective partition entry is still there"
    assert partition(built, 1).startswith(BASE["./boot/gptboot"])


def test_loader_is_where_uefi_looks(built: SandboxedBuild, tmp_path: Path) -> None:
    (tmp_path / "esp").write_bytes(partition(built, 2))
    argv = ["mtype", "-i", tmp_path / "esp", "::/EFI/BOOT/BOOTX64.EFI"]
    assert subprocess.check_output(argv) == LOADER


def test_file_system_agrees_with_itself(ufs: Ufs2) -> None:
    ufs.check()


def test_files_are_those_of_the_sets(ufs: Ufs2) -> None:
    def content(path: str) -> bytes:
        return ufs.content(ufs.inode(ufs.tree[path]))

    assert content("/boot/kernel/kernel") == KERNEL
    changed = {"/etc/master.passwd", "/etc/ssh/sshd_config", "/etc/pwd.db", "/etc/spwd.db"}
    for name, wanted in BASE.items():
        if name[1:] not in changed:
            assert content(name[1:]) == wanted
    assert content("/etc/unbound") == b"/var/unbound"
    assert ufs.tree["/usr/bin/su"] == ufs.tree["/usr/bin/also-su"]
    modes = {path: stat.S_IMODE(ufs.inode(ufs.tree[path]).mode) for path in ("/usr/bin/su", "/tmp", "/dev")}
    assert modes == {"/usr/bin/su": 0o4555, "/tmp": 0o1777, "/dev": 0o555}
    owners = {path: ufs.inode(number).uid for path, number in ufs.tree.items()}
    assert {path for path, uid in owners.items() if uid} == {"/home/ops/mine"}
    assert owners["/home/ops/mine"] == 1001


def test_what_makes_it_this_vm(ufs: Ufs2) -> None:
    def text(path: str) -> str:
        return ufs.content(ufs.inode(ufs.tree[path])).decode()

    settings = text("/etc/rc.conf").splitlines()
    assert {'hostname="web1"', 'ifconfig_vtnet0="DHCP"', 'sshd_enable="YES"'} <= set(settings)
    assert f"root:{HASH}:0:0::0:0:Charlie &:/root:/bin/sh\n" in text("/etc/master.passwd")
    assert stat.S_IMODE(ufs.inode(ufs.tree["/etc/master.passwd"]).mode) == 0o600
    assert not {"/etc/pwd.db", "/etc/spwd.db"} & set(ufs.tree), "they know a root without a password"
    assert {"/firstboot", "/etc/rc.d/builder_accounts"} <= set(ufs.tree)
    assert text("/root/.ssh/authorized_keys") == f"{KEY}\n"
    assert text("/etc/ssh/sshd_config").startswith("PermitRootLogin prohibit-password\n")
    assert "comconsole" in text("/boot/loader.conf")
    assert "/dev/gpt/rootfs\t/\tufs" in text("/etc/fstab")
    assert text("/etc/localtime") == "/usr/share/zoneinfo/Europe/Vienna"


def test_another_reader_sees_the_same(built: SandboxedBuild) -> None:
    """GRUB's own driver for UFS2."""
    place = "(loop0,gpt3)"
    listed = subprocess.check_output(["grub-fstest", image(built), "ls", f"{place}/etc/"], text=True)
    assert "master.passwd" in listed.split()
    argv = ["grub-fstest", image(built), "cat", f"{place}/boot/kernel/kernel"]
    assert subprocess.check_output(argv) == KERNEL


def test_secret_is_in_no_line_of_the_log(built: SandboxedBuild) -> None:
    assert any("sfdisk" in line for line in built.log.lines)
    assert not [line for line in built.log.lines if HASH in line]


def test_hostile_set_is_refused(sets: Sets, pool: DirectoryPool) -> None:
    build = prepared(pool, *sets.arguments(base="climbing"))
    with build.opened(SCRIPT):
        build.stage("setup")
        build.stage("prepare")
        with pytest.raises(PvcError, match="is no name for a member"):
            build.stage("install")
        build.stage("cleanup")


def test_wrong_sum_and_missing_sets_are_refused(sets: Sets, pool: DirectoryPool) -> None:
    wrong = [argument for argument in sets.arguments() if not argument.startswith("base_sha256")]
    build = prepared(pool, *wrong, f"base_sha256={'0' * 64}")
    with build.opened(SCRIPT):
        build.stage("prepare")
        with pytest.raises(PvcError, match="its SHA-256 is"):
            build.stage("install")
        build.stage("cleanup")


def test_disks_that_cannot_be_made_are_refused(sets: Sets, pool: DirectoryPool) -> None:
    disks = [volume("sda", mountpoint="/"), volume("sdb", filesystem="ext4", mountpoint="/srv")]
    build = prepared(pool, *sets.arguments(), volumes=disks)
    with build.opened(SCRIPT), pytest.raises(PvcError, match="disks sdb: only the root disk"):
        build.stage("setup")
