"""The debootstrap builder: a VM built in the sandbox, looked at, and booted by both kinds of firmware."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from boot import OVMF, boot
from sandboxed import BUILDERS, GIB, SandboxedBuild, plan, volume

from pvccommon.declarations import read_declaration, type_arguments
from pvccommon.storage.directory import DirectoryPool

pytestmark = pytest.mark.system

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000 me@desk"
HASH = "$6$saltsaltsalt$0123456789"
ARGUMENTS = ["user=ops", f"ssh_keys={KEY}", f"root_password_hash={HASH}", "timezone=Europe/Vienna"]
BOOT_TIMEOUT_S = 420


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SandboxedBuild:
    script = (BUILDERS / "debootstrap.py").read_text()
    arguments, _, problems = type_arguments(read_declaration(script), ARGUMENTS)
    assert not problems
    disks = [volume("sda", size_bytes=3 * GIB, filesystem="ext4", mountpoint="/"), volume("sdb")]
    pool = DirectoryPool("vms", tmp_path_factory.mktemp("pool"))
    build = SandboxedBuild(pool, plan(arguments=arguments, volumes=disks))
    build.run(script)
    return build


def image(build: SandboxedBuild) -> Path:
    return Path(build.pool.disk_source("web1_sda").path)


@contextmanager
def opened(build: SandboxedBuild, directory: Path) -> Iterator[Path]:
    """The root file system, mounted read-only."""
    table = json.loads(subprocess.check_output(["sfdisk", "--json", image(build)]))["partitiontable"]
    offset = table["partitions"][2]["start"] * 512
    options = f"loop,ro,noload,offset={offset}"
    subprocess.run(["mount", "-o", options, image(build), directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def test_what_is_on_the_disk(built: SandboxedBuild, tmp_path: Path) -> None:
    with opened(built, tmp_path) as root:
        assert (root / "etc/hostname").read_text() == "web1\n"
        assert (root / "etc/machine-id").read_text() == ""
        assert list((root / "etc/ssh").glob("ssh_host_*")) == []
        assert (root / "etc/timezone").read_text() == "Europe/Vienna\n"
        assert (root / "home/ops/.ssh/authorized_keys").read_text() == f"{KEY}\n"
        passwords = dict(line.split(":")[:2] for line in (root / "etc/shadow").read_text().splitlines())
        assert passwords["root"] == HASH
        assert passwords["ops"].startswith("!")
        assert not [user for user, password in passwords.items() if password == ""]
        assert (
            (root / "etc/fstab")
            .read_text()
            .splitlines()[1]
            .endswith(" / ext4 defaults,errors=remount-ro 0 1")
        )
        assert len(list((root / "boot").glob("initrd.img-*"))) == 1
        leftovers = ["99mmdebstrap", "policy-rc.d", "BOOTX64.EFI", "start.cfg"]
        assert [path for name in leftovers for path in root.rglob(name)] == []
        owners = {path.stat().st_uid for path in (root / "usr/bin").iterdir() if not path.is_symlink()}
        assert owners == {0}


def test_secret_is_in_no_line_of_the_log(built: SandboxedBuild) -> None:
    assert len(built.log.lines) > 100
    assert not [line for line in built.log.lines if HASH in line]


def test_kernel_was_given_its_initial_file_system_once(built: SandboxedBuild) -> None:
    assert sum("update-initramfs: Generating" in line for line in built.log.lines) == 1


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_it_boots_to_the_login_prompt(built: SandboxedBuild, firmware: str, tmp_path: Path) -> None:
    if firmware == "uefi" and not (OVMF / "OVMF_CODE_4M.fd").exists():
        pytest.skip("OVMF is not installed (package ovmf)")
    console = boot(image(built), "web1 login:", tmp_path, uefi=firmware == "uefi", timeout_s=BOOT_TIMEOUT_S)
    assert "root=UUID=" in console
