"""rinse(8): unpacks a base system of an RPM distribution, without checking a signature."""

import os
from configparser import ConfigParser
from pathlib import Path
from typing import Final

from vmbuilder.command import Argv, find_tool, run
from vmbuilder.errors import ProvisioningError
from vmbuilder.target import Target

CONFIG: Final = Path("/etc/rinse/rinse.conf")
_LISTS: Final = CONFIG.parent
_HOOK: Final = Path("/tmp/rinse-mounts")
_PLACES: Final = ("/dev", "/sys", "/proc")

# After unpacking, which would want to own /proc, and before the new system's programs are run. rinse would
# make device nodes instead, which nobody may do here.
_HOOK_SCRIPT: Final = "#!/bin/sh -e\nfor place in proc sys dev; do mount --rbind /$place $1/$place; done\n"


def knows(name: str) -> bool:
    """Whether rinse is installed and has a package list and a mirror for, say, rocky-9."""
    listed = (_LISTS / f"{name}.packages").is_file()
    return listed and find_tool("rinse") is not None and mirror(name) is not None


def mirror(name: str, config: Path = CONFIG) -> str | None:
    """The directory of packages that rinse's configuration has for a release, or None."""
    if not config.is_file():
        return None
    parser = ConfigParser(interpolation=None, strict=False)
    parser.read_string(config.read_text(errors="replace"))
    section = parser[name] if parser.has_section(name) else {}
    return section.get("mirror.amd64") or section.get("mirror")


def install(target: Target, name: str, packages_url: str | None = None) -> None:
    """Unpack a base system that has dnf. The target must have no system mounts.

    `packages_url` is a directory of packages, to use instead of rinse's own mirror. Raises ProvisioningError.
    """
    _HOOK.write_text(_HOOK_SCRIPT)
    _HOOK.chmod(0o755)
    argv: Argv = ["rinse", "--arch", "amd64", "--distribution", name, "--directory", target.root]
    # Told where its own files are, or it looks in other places first.
    files: Argv = ["--config", CONFIG, "--pkgs-dir", _LISTS, "--before-post-install", _HOOK]
    try:
        done = run([*argv, *files, *(["--mirror", packages_url] if packages_url else [])])
    finally:
        _unmount(target)
    # It exits with 0 whatever happens.
    if "Installation complete." not in done.stdout or not target.has("/usr/bin/dnf"):
        raise ProvisioningError("rinse did not install a system with dnf; what it said is in the log")
    target.remove("/*.rpm")


def _unmount(target: Target) -> None:
    """Take away the mounts of the hook and of rinse's own scripts."""
    for place in _PLACES:
        while os.path.ismount(target.path(place)):
            run(["umount", "--lazy", target.path(place)], timeout_s=30)
