"""What differs between RPM distributions, and what they have in common that others do not."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmbuilder import bootloader, rinse
from vmbuilder.command import run
from vmbuilder.errors import ProvisioningError, ValidationError
from vmbuilder.target import Target

# The package that makes it this distribution and knows its repositories, where that is not NAME-release.
_RELEASE_PACKAGES: Final = {"alma": "almalinux-release", "centos": "centos-stream-release"}
_CORE: Final = (
    "bash",
    "coreutils",
    "dnf",
    "filesystem",
    "glibc",
    "passwd",
    "shadow-utils",
    "systemd",
    "util-linux",
)

# Where packages such as distribution-gpg-keys put the keys of distributions.
_KEY_DIRECTORIES: Final = (Path("/usr/share/distribution-gpg-keys"), Path("/etc/pki/rpm-gpg"))

# EL 9 is the last whose database lies in /var; Fedora's has not since 36. (rpm's macro _dbpath)
_LAST_EL_IN_VAR: Final = 9
_OLD_DATABASE: Final = "/var/lib/rpm"
_NEW_DATABASE: Final = "/usr/lib/sysimage/rpm"
# The oldest whose rpm reads the kind of database that this node's rpm writes (sqlite).
_OLDEST: Final = {"fedora": 33}
_OLDEST_EL: Final = 9

_DRACUT: Final = """\
# Written when this VM was built: for any machine, not for the one that built it.
hostonly="no"
"""


def core_packages(distribution: str) -> tuple[str, ...]:
    """What every system of the kind has."""
    return (_RELEASE_PACKAGES.get(distribution, f"{distribution}-release"), *_CORE)


def major(release: str) -> int | None:
    """The first number of a release: 9 of 9.4; None when it has none, such as rawhide."""
    number = re.match(r"\d+", release)
    return int(number[0]) if number else None


def database_path(distribution: str, release: str) -> str:
    """Where a release keeps its RPM database."""
    number = major(release)
    old = distribution != "fedora" and number is not None and number <= _LAST_EL_IN_VAR
    return _OLD_DATABASE if old else _NEW_DATABASE


def check_readable(distribution: str, release: str) -> None:
    """Raise ValidationError for a release whose own rpm cannot read what this node's dnf writes."""
    number, oldest = major(release), _OLDEST.get(distribution, _OLDEST_EL)
    if number is not None and number < oldest:
        raise ValidationError(
            f"{distribution} {release} is too old for this node's dnf: its rpm cannot read the database;"
            f" {distribution} {oldest} is the oldest (engine=rinse may still work)"
        )


# What the node knows.


def known_repositories(name: str, config: Path = rinse.CONFIG) -> list[str]:
    """The repositories that follow from rinse's configuration: that of its packages, with AppStream.

    Raises ValidationError when there is none.
    """
    packages = rinse.mirror(name, config)
    if packages is None:
        raise ValidationError(
            f"this node knows no repository of {name}: give repositories=URL,…, the directories that have a"
            " repodata in them (for Rocky, Alma and CentOS Stream those of BaseOS and AppStream)"
        )
    first = re.sub(r"/Packages/?$", "/", packages)
    return list(dict.fromkeys((first, first.replace("/BaseOS/", "/AppStream/"))))


def known_keys(distribution: str, release: str, directories: Sequence[Path] = _KEY_DIRECTORIES) -> list[str]:
    """Files on this node with the keys that sign a release's packages; raises ValidationError for none."""
    number = re.escape(str(major(release) or release))
    names = {"alma": "almalinux"}.get(distribution, distribution)
    wanted = re.compile(rf"RPM-GPG-KEY-{names}(-{number}(-primary)?|-?official)", re.IGNORECASE)
    places = [place for top in directories for place in (top / distribution, top / names, top)]
    found = [path for place in dict.fromkeys(places) for path in sorted(place.glob("RPM-GPG-KEY-*"))]
    keys = [os.fspath(path) for path in found if wanted.fullmatch(path.name)]
    if not keys:
        raise ValidationError(
            f"this node has no key to check packages of {distribution} {release} with: give repository_keys"
            " (a file or URL), install distribution-gpg-keys on the node, or give check_signatures=false"
        )
    return keys


# The new system.


def prepare_kernel(target: Target, root_uuid: str) -> None:
    """Say, before the kernel's package is installed, what its boot entry and initial file system are for."""
    target.write("/etc/kernel/cmdline", f"root=UUID={root_uuid} ro {bootloader.CONSOLES}\n")
    target.write("/etc/dracut.conf.d/50-builder.conf", _DRACUT)


def check_kernel(target: Target) -> None:
    """See that every kernel has its files in /boot, making them where the package did not."""
    modules = target.path("/lib/modules")
    versions = sorted(path.name for path in modules.iterdir()) if modules.is_dir() else []
    if not versions:
        raise ValidationError("no kernel was installed")
    for version in versions:
        wanted = (f"/boot/vmlinuz-{version}", f"/boot/initramfs-{version}.img")
        if not all(map(target.has, wanted)):
            target.run(["kernel-install", "add", version, f"/lib/modules/{version}/vmlinuz"])
        missing = [name for name in wanted if not target.has(name)]
        if missing:
            raise ProvisioningError(f"the kernel's package did not make {' and '.join(missing)}")


def check_database(target: Target, path: str) -> None:
    """Raise ProvisioningError unless the new system's own rpm sees what has been installed."""
    if not target.has("/usr/bin/rpm"):
        return
    found = run(["rpm", "-qa"], chroot=target.root, timeout_s=120, quiet=True)
    if not found.stdout.strip():
        raise ProvisioningError(f"the new system's rpm does not find the database that was written to {path}")


def relabel_on_first_boot(target: Target) -> None:
    """Where there is SELinux: have the first boot label all files, for only the guest's kernel can."""
    if target.has("/etc/selinux/config"):
        target.write("/.autorelabel", "-F\n")


def set_locale(target: Target, locale: str) -> None:
    """Set the system's language; the C library's packages bring the locales."""
    target.write("/etc/locale.conf", f"LANG={locale}\n")


def language_packages(locale: str) -> list[str]:
    """The package that brings a locale, if one has to."""
    language = re.split(r"[_.@]", locale)[0]
    return [] if language in ("C", "POSIX") else [f"glibc-langpack-{language}"]
