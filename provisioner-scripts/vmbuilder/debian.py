"""What differs between releases of Debian and Ubuntu, and small jobs of installing them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vmbuilder.command import DEFAULT_TIMEOUT_S, run
from vmbuilder.errors import ValidationError
from vmbuilder.target import Target

_SCRIPTS: Final = Path("/usr/share/debootstrap/scripts")
_DISTRO_INFO: Final = Path("/usr/share/distro-info")
_KEYRINGS: Final = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}


def distribution_of(release: str) -> str:
    """Return "debian" or "ubuntu", by what debootstrap or distro-info know; else raises ValidationError."""
    script = _SCRIPTS / release
    if script.is_file():
        return "ubuntu" if "ubuntu-archive-keyring" in script.read_text(errors="replace") else "debian"
    for name in _KEYRINGS:
        table = _DISTRO_INFO / f"{name}.csv"
        rows = table.read_text().splitlines() if table.is_file() else []
        if any(release in row.split(",")[2:3] for row in rows):
            return name
    raise ValidationError(f"release {release} is not known to debootstrap or distro-info on this node")


def require_keyring(distribution: str, given: str | None = None) -> None:
    """Raise ValidationError unless this node can check the signatures, with the file given or its own."""
    if given and not Path(given).is_file():
        hint = "directories such as /srv, /home, /root and /tmp are hidden, see docs/security.md"
        raise ValidationError(f"keyring {given}: there is no such file ({hint})")
    if not given and not Path(_KEYRINGS[distribution]).is_file():
        raise ValidationError(f"package {distribution}-archive-keyring is not installed on this node")


def install_packages(
    target: Target,
    packages: Sequence[str],
    optional: Sequence[str] = (),
    on_line: Callable[[str], str | None] | None = None,
) -> None:
    """Install packages with the target's own apt, without recommended ones.

    `optional` are those to install where the release has them. Needs the target's system mounts.
    """
    apt = [
        "apt-get",
        "--quiet",
        "--option=Dpkg::Options::=--force-unsafe-io",
        "--option=Acquire::Languages=none",
    ]
    target.copy_resolver()
    run([*apt, "update"], chroot=target.root, timeout_s=600)
    known = [name for name in optional if _is_known(target, name)]
    wanted = ["install", "--yes", "--no-install-recommends", *packages, *known]
    run(
        [*apt, *wanted],
        chroot=target.root,
        env={"INITRD": "No"},
        timeout_s=DEFAULT_TIMEOUT_S,
        on_line=on_line,
    )
    run([*apt, "clean"], chroot=target.root, timeout_s=60)


def make_initramfs(target: Target) -> None:
    """Make the initial file system of every installed kernel that has none.

    Done once, when everything is installed: packages are installed with INITRD=No in the environment, which
    keeps the kernel's own hook (see kernel-img.conf(5)) from making one that a package trigger then makes
    again.
    """
    versions = sorted(path.name for path in target.path("/lib/modules").iterdir())
    if not versions:
        raise ValidationError("no kernel was installed")
    for version in versions:
        if not target.has(f"/boot/initrd.img-{version}"):
            target.run(["update-initramfs", "-c", "-k", version])


def remember_grub_disk(target: Target, disk_id: str) -> None:
    """Tell package grub-pc where it was installed, or its next upgrade would stop and ask."""
    by_id = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_drive-scsi0-0-0-"
    unit = ord(disk_id[-1]) - ord("a")
    device = f"{by_id}{unit}" if disk_id.startswith("sd") else f"/dev/{disk_id}"
    answer = f"grub-pc grub-pc/install_devices multiselect {device}\n"
    target.run(["debconf-set-selections"], input=answer)


def _is_known(target: Target, package: str) -> bool:
    found = run(["apt-cache", "show", package], chroot=target.root, ok=(0, 100), timeout_s=60, quiet=True)
    return found.returncode == 0
