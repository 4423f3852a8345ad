"""GRUB on a root disk, for BIOS and for UEFI both, without asking the firmware to remember anything.

BIOS   grub-install puts its core into the first partition (grub-install(8), "i386-pc").
UEFI   install_uefi: one self-contained program at the place every firmware looks at on an unknown disk,
       \\EFI\\BOOT\\BOOTX64.EFI; it carries the modules it needs and goes on with the menu on the root disk.
       Not signed, so the firmware must not insist on a signature (secure boot).
       install_packaged_uefi: the programs that RPM distributions deliver below /boot/efi, signed by them.

The EFI partition is written with mtools, for the kernel here may not mount it.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmbuilder import filesystem, partitions
from vmbuilder.command import require_tools, run
from vmbuilder.errors import ProvisioningError
from vmbuilder.target import Target
from vmbuilder.volumes import FileSystem, Volume, Volumes

TOOLS: Final = ("sfdisk", "mformat", "mmd", "mcopy")

# What the kernel is told, too: messages and a login on the screen and on the first serial port.
CONSOLES: Final = "console=tty0 console=ttyS0,115200n8"


@dataclass(frozen=True)
class Grub:
    """What a family of distributions calls the parts of GRUB. `directory` is below /boot."""

    settings: str
    install: str
    make_menu: tuple[str, ...]
    directory: str
    extra_settings: str = ""

    @property
    def menu(self) -> str:
        """The generated menu."""
        return f"/boot/{self.directory}/grub.cfg"


DEBIAN: Final = Grub("/etc/default/grub.d/50-builder.cfg", "grub-install", ("update-grub",), "grub")
# The menu's entries are files of their own there (Boot Loader Specification), made by kernel-install(8).
REDHAT: Final = Grub(
    "/etc/default/grub",
    "grub2-install",
    ("grub2-mkconfig", "-o", "/boot/grub2/grub.cfg"),
    "grub2",
    "GRUB_DEFAULT=saved\nGRUB_DISABLE_SUBMENU=true\nGRUB_DISABLE_RECOVERY=true\nGRUB_ENABLE_BLSCFG=true\n",
)

_SETTINGS: Final = """\
# Written when this VM was built: menu and kernel messages also on the serial console.
GRUB_TIMEOUT=1
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{consoles}"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER=true
"""

# All that the generated menu asks for; what is compiled in needs no file of the same version on the disk.
_EFI_MODULES: Final = (
    "part_gpt part_msdos ext2 xfs btrfs fat normal configfile search search_fs_uuid search_fs_file"
    " search_label linux echo test true regexp sleep loadenv gzio zstd minicmd halt reboot boot chain ls cat"
    " all_video gfxterm font terminal serial efifwsetup"
).split()

_EFI_START: Final = """\
search.fs_uuid {uuid} root
set prefix=($root){directory}
configfile $prefix/grub.cfg
"""

# Beside the packaged program, whose own directory is its prefix.
_EFI_PACKAGED_START: Final = """\
search --no-floppy --fs-uuid --set=root {uuid}
set prefix=($root){directory}
configfile $prefix/grub.cfg
"""
_EFI_PLACE: Final = "/boot/efi"


def check_tools() -> None:
    """Raise ValidationError unless this node has the programs used here."""
    require_tools(TOOLS)


def configure(target: Target, extra_settings: str = "", grub: Grub = DEBIAN) -> None:
    """Write GRUB's settings: short menu, serial console."""
    settings = _SETTINGS.format(consoles=CONSOLES)
    target.write(grub.settings, settings + grub.extra_settings + extra_settings)


def install_bios(target: Target, volumes: Volumes, grub: Grub = DEBIAN) -> None:
    """Make the root disk bootable by BIOS. Needs GRUB for i386-pc in the target and its system mounts."""
    target.run([grub.install, "--target=i386-pc", volumes.root.device])


def install_uefi(target: Target, volumes: Volumes) -> None:
    """Make the root disk bootable by UEFI. Needs grub-efi-amd64-bin in the target and its system mounts."""
    node = volumes.root.partition_nodes[partitions.EFI_SYSTEM]
    with tempfile.TemporaryDirectory(dir=target.path("/var/tmp")) as scratch:
        inside = "/" + os.path.relpath(scratch, target.root)
        Path(scratch, "start.cfg").write_text(_efi_start(volumes, DEBIAN, _EFI_START))
        program = f"{inside}/BOOTX64.EFI"
        config = ["--config", f"{inside}/start.cfg", "--prefix", "/boot/grub"]
        target.run(["grub-mkimage", "--format", "x86_64-efi", "--output", program, *config, *_EFI_MODULES])
        write_efi_partition(node, volumes.root, target.path(program))


def install_packaged_uefi(target: Target, volumes: Volumes, grub: Grub = REDHAT) -> FileSystem:
    """Make the root disk bootable by UEFI with what packages have put below /boot/efi.

    The files move to the EFI partition, which the guest mounts there. Returned for fstab.
    """
    tree = target.path(_EFI_PLACE)
    program = next(iter(sorted(tree.glob("EFI/*/grubx64.efi"))), None)
    if program is None or not (tree / "EFI/BOOT/BOOTX64.EFI").is_file():
        raise ProvisioningError(
            f"no package has put grubx64.efi and BOOTX64.EFI below {_EFI_PLACE} of the target"
            " (usually grub2-efi-x64 and shim-x64 do)"
        )
    start = _efi_start(volumes, grub, _EFI_PACKAGED_START)
    (program.parent / "grub.cfg").write_text(start)
    node = volumes.root.partition_nodes[partitions.EFI_SYSTEM]
    identifier = filesystem.new_identifier("vfat")
    _format_efi_partition(node, volumes.root, identifier)
    run(["mcopy", "-s", "-i", node, *sorted(tree.iterdir()), "::/"], timeout_s=60, quiet=True)
    shutil.rmtree(tree)
    return FileSystem("vfat", identifier, _EFI_PLACE, node, partitions.EFI_SYSTEM)


def write_menu(target: Target, grub: Grub = DEBIAN) -> None:
    """Generate grub.cfg for the installed kernels."""
    target.run(grub.make_menu)
    entries = [target.path(grub.menu), *target.path("/boot/loader/entries").glob("*.conf")]
    if not any("root=UUID=" in entry.read_text() for entry in entries):
        raise ProvisioningError("the boot menu does not name the root file system by its UUID")


def write_efi_partition(node: str, volume: Volume, program: Path) -> None:
    """Format an EFI system partition (FAT32) and put `program` where firmware looks for it."""
    _format_efi_partition(node, volume, filesystem.new_identifier("vfat"))
    run(["mmd", "-i", node, "::/EFI", "::/EFI/BOOT"], timeout_s=60, quiet=True)
    run(["mcopy", "-i", node, program, "::/EFI/BOOT/BOOTX64.EFI"], timeout_s=60, quiet=True)


def _format_efi_partition(node: str, volume: Volume, identifier: str) -> None:
    size = next(part.size_bytes for part in volume.layout if part.number == partitions.EFI_SYSTEM)
    sectors = str(size // partitions.SECTOR_BYTES)
    geometry = ["-T", sectors, "-h", "64", "-s", "32", "-F", "-N", identifier.replace("-", "")]
    run(["mformat", "-i", node, *geometry, "-v", "EFI", "::"], timeout_s=60, quiet=True)


def _efi_start(volumes: Volumes, grub: Grub, commands: str) -> str:
    """The first commands of the UEFI program: find the file system that has GRUB's directory."""
    by_place = {volume.mountpoint: volume.content for volume in volumes if volume.content}
    boot, above = (by_place["/boot"], "") if "/boot" in by_place else (by_place["/"], "/boot")
    return commands.format(uuid=boot.identifier, directory=f"{above}/{grub.directory}")
