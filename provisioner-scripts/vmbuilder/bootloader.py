"""GRUB on a root disk, for BIOS and for UEFI both, without asking the firmware to remember anything.

BIOS   grub-install puts its core into the first partition (grub-install(8), "i386-pc").
UEFI   one self-contained program at the place every firmware looks at on an unknown disk,
\\EFI\\BOOT\\BOOTX64.EFI; it
       carries the modules it needs and goes on with the menu on the root disk. The EFI partition is written
       with mtools, for the kernel here may not mount it.

Not signed, so the firmware must not insist on a signature (secure boot).
"""

import os
import tempfile
from pathlib import Path
from typing import Final

from vmbuilder import partitions
from vmbuilder.command import require_tools, run
from vmbuilder.errors import ProvisioningError
from vmbuilder.target import Target
from vmbuilder.volumes import Volume, Volumes

TOOLS: Final = ("sfdisk", "mformat", "mmd", "mcopy")

_SETTINGS: Final = """\
# Written when this VM was built: menu and kernel messages also on the serial console.
GRUB_TIMEOUT=1
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200n8"
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


def check_tools() -> None:
    """Raise ValidationError unless this node has the programs used here."""
    require_tools(TOOLS)


def configure(target: Target, extra_settings: str = "") -> None:
    """Write GRUB's settings: short menu, serial console."""
    target.write("/etc/default/grub.d/50-builder.cfg", _SETTINGS + extra_settings)


def install_bios(target: Target, volumes: Volumes) -> None:
    """Make the root disk bootable by BIOS. Needs grub-pc-bin in the target and its system mounts."""
    target.run(["grub-install", "--target=i386-pc", volumes.root.device])


def install_uefi(target: Target, volumes: Volumes) -> None:
    """Make the root disk bootable by UEFI. Needs grub-efi-amd64-bin in the target and its system mounts."""
    node = volumes.root.partition_nodes[partitions.EFI_SYSTEM]
    with tempfile.TemporaryDirectory(dir=target.path("/var/tmp")) as scratch:
        inside = "/" + os.path.relpath(scratch, target.root)
        Path(scratch, "start.cfg").write_text(_efi_start(volumes))
        program = f"{inside}/BOOTX64.EFI"
        config = ["--config", f"{inside}/start.cfg", "--prefix", "/boot/grub"]
        target.run(["grub-mkimage", "--format", "x86_64-efi", "--output", program, *config, *_EFI_MODULES])
        write_efi_partition(node, volumes.root, target.path(program))


def write_menu(target: Target) -> None:
    """Generate grub.cfg for the installed kernels."""
    target.run(["update-grub"])
    menu = target.path("/boot/grub/grub.cfg")
    if "root=UUID=" not in menu.read_text():
        raise ProvisioningError("the boot menu does not name the root file system by its UUID")


def write_efi_partition(node: str, volume: Volume, program: Path) -> None:
    """Format an EFI system partition (FAT32) and put `program` where firmware looks for it."""
    size = next(part.size_bytes for part in volume.layout if part.number == partitions.EFI_SYSTEM)
    sectors = str(size // partitions.SECTOR_BYTES)
    run(
        ["mformat", "-i", node, "-T", sectors, "-h", "64", "-s", "32", "-F", "-v", "EFI", "::"],
        timeout_s=60,
        quiet=True,
    )
    run(["mmd", "-i", node, "::/EFI", "::/EFI/BOOT"], timeout_s=60, quiet=True)
    run(["mcopy", "-i", node, program, "::/EFI/BOOT/BOOTX64.EFI"], timeout_s=60, quiet=True)


def _efi_start(volumes: Volumes) -> str:
    """The first commands of the UEFI program: find the file system that has GRUB's directory."""
    by_place = {volume.mountpoint: volume.content for volume in volumes if volume.content}
    boot, directory = (by_place["/boot"], "/grub") if "/boot" in by_place else (by_place["/"], "/boot/grub")
    return _EFI_START.format(uuid=boot.identifier, directory=directory)
