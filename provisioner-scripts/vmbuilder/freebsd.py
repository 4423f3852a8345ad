"""A FreeBSD system made out of its distribution sets, without running any of its programs.

Its user database is binary and can only be made by FreeBSD: that is left to the first boot (rc(8),
"firstboot").
"""

import os
from typing import Final

from vmbuilder import partitions, ufs2
from vmbuilder.command import find_tool, run
from vmbuilder.errors import ProvisioningError, ValidationError
from vmbuilder.target import Target
from vmbuilder.volumes import Volume

TOOLS: Final = ("sfdisk", "mformat", "mmd", "mcopy")
_CHECKERS: Final = ("fsck_ufs", "fsck.ufs")
PMBR: Final = "/boot/pmbr"
GPTBOOT: Final = "/boot/gptboot"
LOADER: Final = "/boot/loader.efi"
_NEEDED: Final = (PMBR, GPTBOOT, LOADER, "/boot/kernel/kernel", "/etc/master.passwd", "/etc/rc", "/sbin/init")

# The boot code of a disk's first sector ends where the partition table of old begins.
_BOOT_CODE_BYTES: Final = 440
_FSTAB: Final = """\
# Device\tMountpoint\tFStype\tOptions\tDump\tPass#
/dev/gpt/rootfs\t/\tufs\trw\t1\t1
/dev/gpt/efiboot0\t/boot/efi\tmsdosfs\trw,failok\t2\t2
"""
_LOADER: Final = """\
# Written when this VM was built: also on the serial console.
autoboot_delay="1"
boot_multicons="YES"
boot_serial="YES"
comconsole_speed="115200"
console="comconsole,vidconsole"
"""
_FIRST_BOOT: Final = """\
#!/bin/sh
# Written when this VM was built: makes the user database out of /etc/master.passwd, once.
#
# PROVIDE: builder_accounts
# REQUIRE: FILESYSTEMS
# BEFORE: NETWORKING
# KEYWORD: firstboot nojail

. /etc/rc.subr

name="builder_accounts"
start_cmd="/usr/sbin/pwd_mkdb -p -d /etc /etc/master.passwd"
stop_cmd=":"

load_rc_config $name
run_rc_command "$1"
"""


def check_sets(target: Target) -> None:
    """Raise ValidationError unless what was unpacked is a FreeBSD that can start."""
    missing = [name for name in _NEEDED if target.path(name).is_symlink() or not target.path(name).is_file()]
    if missing:
        raise ValidationError(
            f"the distribution sets have no {', '.join(missing)}: give base.txz and kernel.txz"
        )


def configure(target: Target, hostname: str, interfaces: int) -> None:
    """Network by DHCP, SSH, serial console, file systems; the user database at the first boot."""
    settings = {"hostname": hostname, "sshd_enable": "YES", "dumpdev": "NO"}
    settings |= {f"ifconfig_vtnet{number}": "DHCP" for number in range(interfaces)}
    target.write("/etc/rc.conf", "".join(f'{name}="{value}"\n' for name, value in settings.items()))
    target.write("/etc/fstab", _FSTAB)
    target.write("/boot/loader.conf", _LOADER)
    target.path("/boot/efi").mkdir(exist_ok=True)
    target.write("/etc/rc.d/builder_accounts", _FIRST_BOOT, mode=0o555)
    target.write("/firstboot", "")


def set_root_password_hash(target: Target, password_hash: str | None) -> None:
    """Set root's password by its crypt(3) hash; None locks it. Takes effect at the first boot.

    The databases that come with the set know a root without a password, and are removed.
    """
    path = target.path("/etc/master.passwd")
    lines = path.read_text().splitlines()
    changed = [
        _with_password(line, password_hash or "*") if line.startswith("root:") else line for line in lines
    ]
    if changed == lines:
        raise ProvisioningError(
            "/etc/master.passwd of the distribution set has no root with another password"
        )
    target.write("/etc/master.passwd", "\n".join(changed) + "\n", mode=0o600)
    target.remove("/etc/pwd.db", "/etc/spwd.db")


def allow_root_keys(target: Target) -> None:
    """Let root log in by SSH key, which FreeBSD's sshd refuses otherwise; never by password."""
    config = target.path("/etc/ssh/sshd_config")
    text = config.read_text() if config.is_file() else ""
    # sshd takes the first value it finds.
    target.write("/etc/ssh/sshd_config", f"PermitRootLogin prohibit-password\n{text}")


def write_boot_code(target: Target, volume: Volume) -> None:
    """Make the disk start by BIOS: code in the first sector, which starts gptboot in its partition."""
    code = target.path(PMBR).read_bytes()[:_BOOT_CODE_BYTES]
    program = target.path(GPTBOOT).read_bytes()
    room = next(part.size_bytes for part in volume.layout if part.number == partitions.BIOS_BOOT)
    if len(program) > room:
        raise ValidationError(
            f"{GPTBOOT} of the distribution set has {len(program)} bytes; {room} is the most"
        )
    _write_over(volume.mapped_node(), code)
    _write_over(volume.partition_nodes[partitions.BIOS_BOOT], program)


def make_root(target: Target, volume: Volume) -> None:
    """Make the root partition a UFS2 file system with the target's files, and check it if this node can."""
    node = volume.partition_nodes[partitions.ROOT]
    size = next(part.size_bytes for part in volume.layout if part.number == partitions.ROOT)
    ufs2.make(node, size, target.root, "rootfs")
    checker = next(filter(find_tool, _CHECKERS), None)
    if checker:
        run([checker, "-n", "-f", node])


def _with_password(line: str, password_hash: str) -> str:
    """A line of master.passwd(5) with another password."""
    name, _, rest = line.split(":", 2)
    return f"{name}:{password_hash}:{rest}"


def _write_over(node: str, data: bytes) -> None:
    """Write to the beginning of a device, leaving what comes after."""
    descriptor = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
