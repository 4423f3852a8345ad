"""File systems: how each kind is made, and what the target's fstab says about it."""

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vmbuilder.command import find_tool, run
from vmbuilder.errors import ValidationError

_MKFS_TIMEOUT_S: Final = 900


@dataclass(frozen=True)
class Kind:
    """One kind of file system.

    `make` is the command up to the user's own arguments. None of them discards blocks first: a volume of ours
    is new, and on network storage that is the slowest part. `identify` turns an identifier into arguments;
    they come last, so that ours holds. `package` has the tools the running guest needs.
    `driver` is the kernel's name to mount it by, where that is another.
    """

    make: tuple[str, ...]
    identify: Callable[[str], tuple[str, ...]]
    package: str
    passno: int
    options: str = "defaults"
    root_options: str = "defaults"
    driver: str | None = None

    @property
    def program(self) -> str:
        """The program that makes it."""
        return self.make[0]


def _dash_u(identifier: str) -> tuple[str, ...]:
    return ("-U", identifier)


# The driver for ext4 takes ext2 and ext3, too, and only under its own name does it map ids into a sandbox.
def _ext(program: str, *more: str) -> Kind:
    make = (program, "-F", "-q", *more, "-E", "nodiscard")
    return Kind(
        make, _dash_u, "e2fsprogs", passno=2, root_options="defaults,errors=remount-ro", driver="ext4"
    )


# Two ext4 features are off because boot loaders and kernels of releases before 2024 cannot read them, while
# the host's own mke2fs may switch them on.
KINDS: Final[dict[str, Kind]] = {
    "ext4": _ext("mkfs.ext4", "-O", "^metadata_csum_seed,^orphan_file"),
    "ext3": _ext("mkfs.ext3"),
    "ext2": _ext("mkfs.ext2"),
    "xfs": Kind(("mkfs.xfs", "-f", "-q", "-K"), lambda uuid: ("-m", f"uuid={uuid}"), "xfsprogs", passno=0),
    "btrfs": Kind(("mkfs.btrfs", "-f", "-q", "-K"), _dash_u, "btrfs-progs", passno=0),
    "vfat": Kind(
        ("mkfs.vfat",),
        lambda uuid: ("-i", uuid.replace("-", "")),
        "dosfstools",
        passno=2,
        options="umask=0077",
    ),
    "swap": Kind(("mkswap",), _dash_u, "util-linux", passno=0, options="sw"),
}


def kind_of(name: str) -> Kind:
    """The kind of that name; raises ValidationError for one we do not make."""
    if name not in KINDS:
        raise ValidationError(f"file system {name!r} is not one of {', '.join(KINDS)}")
    return KINDS[name]


def driver_of(name: str) -> str:
    """The name by which the kernel mounts it; any that is found on a clone is left to the worker to judge."""
    kind = KINDS.get(name)
    return kind.driver or name if kind else name


def new_identifier(name: str) -> str:
    """A fresh identifier as blkid(8) and fstab(5) write it: a UUID, or for vfat 1234-ABCD."""
    if name == "vfat":
        serial = uuid.uuid4().hex[:8].upper()
        return f"{serial[:4]}-{serial[4:]}"
    return str(uuid.uuid4())


def make_command(name: str, device: str, identifier: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command line that makes a file system with a given identifier."""
    kind = kind_of(name)
    return [*kind.make, *arguments, *kind.identify(identifier), device]


def make(name: str, device: str, arguments: Sequence[str] = ()) -> str:
    """Make a file system on a device node, destroying what was there; returns its identifier."""
    identifier = new_identifier(name)
    run(make_command(name, device, identifier, arguments), timeout_s=_MKFS_TIMEOUT_S)
    return identifier


def probe(device: str, offset_bytes: int = 0, size_bytes: int | None = None) -> tuple[str, str] | None:
    """Kind and identifier of the file system on a device or a part of it, or None when there is none.

    blkid exits with 2 then, and with 8 when it finds signatures of several, which is none to rely on.
    """
    part = ["-O", str(offset_bytes), "-S", str(size_bytes)] if size_bytes else []
    argv = ["blkid", "-p", "-o", "export", *part, os.fspath(device)]
    found = run(argv, ok=(0, 2, 8), timeout_s=60, quiet=True)
    values = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    return (values["TYPE"], values["UUID"]) if "TYPE" in values and "UUID" in values else None


def missing_programs(names: Sequence[str]) -> list[str]:
    """The mkfs programs among those needed for `names` that are not installed on this node."""
    return sorted({kind_of(name).program for name in names if find_tool(kind_of(name).program) is None})
