"""The rinse builder: a VM built in the sandbox from a small RPM repository, and looked at."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import rpm_repository
from boot import OVMF, boot
from sandboxed import BUILDERS, GIB, SandboxedBuild, plan, volume

from pvccommon.declarations import read_declaration, type_arguments
from pvccommon.errors import PvcError
from pvccommon.storage.directory import DirectoryPool

pytestmark = pytest.mark.system

SCRIPT = (BUILDERS / "rinse.py").read_text()
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB0000000000000000000000000000000000000000000 me@desk"
HASH = "$6$saltsaltsalt$0123456789"
LOGIN = ["user=ops", f"ssh_keys={KEY}", f"root_password_hash={HASH}", "timezone=Europe/Vienna"]
TINY = ["packages=selinux-policy-targeted", *LOGIN]
ROOT_DISK = volume("sda", size_bytes=GIB // 2, filesystem="ext4", mountpoint="/")
BOOT_TIMEOUT_S = 120


@dataclass(frozen=True)
class Repository:
    directory: Path
    key: Path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """In a directory that a sandbox sees: /tmp is the sandbox's own."""
    missing = [name for name in ("dnf", "rpmbuild", "createrepo_c", "rinse") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    directory = Path(tempfile.mkdtemp(prefix="tiny-rpms-", dir="/var/lib"))
    try:
        directory.chmod(0o755)
        key = rpm_repository.build(directory, tmp_path_factory.mktemp("rpms"))
        yield Repository(directory, key)
    finally:
        shutil.rmtree(directory)


def prepared(pool: DirectoryPool, *arguments: str, **changes: object) -> SandboxedBuild:
    typed, _, problems = type_arguments(read_declaration(SCRIPT), list(arguments))
    assert not problems
    return SandboxedBuild(pool, plan(**{"arguments": typed, "volumes": [ROOT_DISK], **changes}))


def source(repository: Repository) -> list[str]:
    return [f"repositories={repository.directory}", f"repository_keys=file:{repository.key}"]


@pytest.fixture(scope="module")
def built(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> SandboxedBuild:
    disks = [ROOT_DISK, volume("sdb", filesystem="xfs", mountpoint="/srv/data")]
    pool = DirectoryPool("vms", tmp_path_factory.mktemp("pool"))
    build = prepared(pool, *source(repository), *TINY, volumes=disks)
    build.run(SCRIPT)
    return build


@contextmanager
def opened(build: SandboxedBuild, directory: Path) -> Iterator[Path]:
    """The root file system, mounted read-only."""
    offset = partitions(build)[2]["start"] * 512
    options = f"loop,ro,noload,offset={offset}"
    subprocess.run(["mount", "-o", options, image(build), directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def image(build: SandboxedBuild) -> Path:
    return Path(build.pool.disk_source("web1_sda").path)


def partitions(build: SandboxedBuild) -> list[dict[str, int]]:
    table = json.loads(subprocess.check_output(["sfdisk", "--json", image(build)]))
    found: list[dict[str, int]] = table["partitiontable"]["partitions"]
    return found


def rpm(root: Path, *arguments: str) -> list[str]:
    argv = ["rpm", "--root", root, "--define", "_dbpath /var/lib/rpm", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def test_rpm_database_and_files_agree(built: SandboxedBuild, tmp_path: Path) -> None:
    with opened(built, tmp_path) as root:
        wanted = "NetworkManager filesystem grub2-tools kernel selinux-policy-targeted tiny-base".split()
        installed = set(rpm(root, "-qa", "--qf", "%{name}\n"))
        assert installed == {*wanted, "gpg-pubkey"}
        # What was configured afterwards, and the programs of UEFI, which are on a partition of their own.
        differ = {line.split()[-1] for line in rpm(root, "-Va", "--nomtime")}
        differ = {path for path in differ if not path.startswith("/boot/efi/")}
        assert differ <= {"/etc/passwd", "/etc/group", "/etc/shadow", "/proc", "/sys", "/dev", "/run"}


def test_scripts_owners_and_modes(built: SandboxedBuild, tmp_path: Path) -> None:
    with opened(built, tmp_path) as root:
        assert (root / "var/lib/web/post-ran").read_text() == "uid 0\n"
        assert oct((root / "usr/bin/low-port").stat().st_mode) == "0o104755"
        assert os.getxattr(root / "usr/bin/low-port", "security.capability")[4:6] == b"\x00\x04"
        assert ((page := (root / "var/lib/web/page").stat()).st_uid, page.st_gid) == (81, 81)
        assert {path.lstat().st_uid for path in (root / "usr/bin").iterdir()} == {0}
        assert oct((root / "tmp").stat().st_mode) == "0o41777"


def test_what_makes_it_this_vm(built: SandboxedBuild, tmp_path: Path) -> None:
    with opened(built, tmp_path) as root:
        assert (root / "etc/hostname").read_text() == "web1\n"
        assert (root / "etc/machine-id").read_text() == ""
        assert (root / ".autorelabel").exists()
        assert (root / "home/ops/.ssh/authorized_keys").read_text() == f"{KEY}\n"
        passwords = dict(line.split(":")[:2] for line in (root / "etc/shadow").read_text().splitlines())
        assert (passwords["root"], passwords["ops"][:1]) == (HASH, "!")
        assert os.readlink(root / "etc/localtime") == "/usr/share/zoneinfo/Europe/Vienna"
        profile = root / "etc/NetworkManager/system-connections/dhcp.nmconnection"
        assert oct(profile.stat().st_mode) == "0o100600"
        assert os.path.lexists(root / "etc/systemd/system/multi-user.target.wants/NetworkManager.service")
        fstab = [line.split()[1:3] for line in (root / "etc/fstab").read_text().splitlines()[1:]]
        assert fstab == [["/", "ext4"], ["/srv/data", "xfs"], ["/boot/efi", "vfat"]]
        entry = next((root / "boot/loader/entries").iterdir()).read_text()
        assert "options root=UUID=" in entry and "console=ttyS0" in entry
        leftovers = [
            "tmp/*",
            "var/cache/dnf",
            "root/.rpm*",
            "var/log/dnf*",
            "boot/efi/*",
            "etc/resolv.conf",
            "run/*",
        ]
        assert [path for pattern in leftovers for path in root.glob(pattern)] == []


def test_secret_is_in_no_line_of_the_log(built: SandboxedBuild) -> None:
    assert any("dnf --assumeyes" in line for line in built.log.lines)
    assert not [line for line in built.log.lines if HASH in line]


def test_efi_partition_has_the_identifier_of_fstab(built: SandboxedBuild, tmp_path: Path) -> None:
    offset = partitions(built)[1]["start"] * 512
    listed = subprocess.check_output(["mdir", "-b", "-/", "-i", f"{image(built)}@@{offset}", "::"], text=True)
    assert set(listed.split()) >= {
        "::/EFI/BOOT/BOOTX64.EFI",
        "::/EFI/debian/grubx64.efi",
        "::/EFI/debian/grub.cfg",
    }
    probed = subprocess.check_output(
        ["blkid", "-p", "-O", str(offset), "-s", "UUID", "-o", "value", image(built)], text=True
    )
    with opened(built, tmp_path) as root:
        assert f"UUID={probed.strip()} /boot/efi vfat" in (root / "etc/fstab").read_text()


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_it_starts_to_its_menu(built: SandboxedBuild, firmware: str, tmp_path: Path) -> None:
    """The kernel is none; that GRUB looks for it shows that it has read the menu."""
    if firmware == "uefi" and not (OVMF / "OVMF_CODE_4M.fd").exists():
        pytest.skip("OVMF is not installed (package ovmf)")
    boot(image(built), rpm_repository.KERNEL, tmp_path, uefi=firmware == "uefi", timeout_s=BOOT_TIMEOUT_S)


def refusal(build: SandboxedBuild, *stages: str) -> str:
    with build.opened(SCRIPT), pytest.raises(PvcError) as caught:
        for stage in stages:
            build.stage(stage)
    return str(caught.value)


def test_package_signed_by_another_key_is_refused(repository: Repository, pool: DirectoryPool) -> None:
    key = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    build = prepared(pool, f"repositories={repository.directory}", f"repository_keys={key}", *TINY)
    refusal(build, "setup", "prepare", "install")
    assert any("GPG" in line or "ublic key" in line for line in build.log.lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distribution=nimbus", "check_signatures=false"], "give repositories="),
        (["engine=rinse", "distribution=nimbus"], "rinse does not know nimbus-9"),
        ([], "rinse, which checks no signatures"),
        (["repositories=https://mirror.invalid/os"], "give repository_keys"),
        (["repositories=/srv/repo,/tmp/repo", "check_signatures=false"], "/srv/repo is no repository"),
        (["release=8", "engine=dnf", "check_signatures=false"], "too old"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_made(
    pool: DirectoryPool, arguments: list[str], words: str
) -> None:
    assert words in refusal(prepared(pool, *arguments), "setup")
    assert list(pool.list_volumes()) == []


# rinse fetches over HTTP only, and the sandbox has a loopback of its own.
SERVER = """

class VMBuilderScript(VMBuilderScript):
    def setup(self):
        import functools, http.server, threading

        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory={directory!r})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        super().setup()
"""


def test_rinse_unpacks_and_its_failure_is_noticed(repository: Repository, pool: DirectoryPool) -> None:
    """The real rinse, as far as it goes: there is no dnf in the small distribution to go on with."""
    arguments = ["engine=rinse", "repositories=http://127.0.0.1:8080/", "check_signatures=false"]
    build = prepared(pool, *arguments)
    script = SCRIPT + SERVER.format(directory=str(repository.directory / "x86_64"))
    with build.opened(script):
        build.stage("setup")
        build.stage("prepare")
        with pytest.raises(PvcError, match="rinse did not install a system with dnf"):
            build.stage("install")
        build.stage("cleanup")
    log = "\n".join(build.log.lines)
    assert "Running post-install script /usr/lib/rinse/common/20-dev-zero.sh" in log
    assert "mknod" not in log, "device nodes were there, mounted"
    assert "Installation complete." in log
