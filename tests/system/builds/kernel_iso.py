"""An ISO image as distributions make them: GRUB, Debian's kernel, an initial file system with an installer.

The installer is a shell script: it looks for the answers on the CD-ROMs, says the host name it has read,
writes a boot sector that says it, too, to the first disk, and powers off.
"""

import shutil
import subprocess
from pathlib import Path

from boot_sectors import HANG, START, boot_sector, say

KERNEL = "linux-image-cloud-amd64"
# Of the kernel's modules: PCI and SCSI by virtio, disks, CD-ROMs and their file system.
MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci*",
    "virtio_scsi",
    "scsi_mod",
    "scsi_common",
    "sd_mod",
    "sr_mod",
    "cdrom",
    "isofs",
    "crct10dif*",
    "crc-t10dif",
    "crc64*",
    "t10-pi",
)
NAME_ROOM = 32
GRUB_MENU = """\
search --no-floppy --set=root --file /vmlinuz
linux /vmlinuz console=ttyS0 quiet panic=-1
initrd /initrd
boot
"""
INIT = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for round in 1 2 3 4 5; do for module in /modules/*; do insmod $module 2>/dev/null; done; done
for try in $(seq 50); do test -b /dev/sda -a -b /dev/sr1 && break; sleep 0.1; done
for drive in /dev/sr*; do
    mount -t iso9660 -o ro $drive /answers || continue
    test -f /answers/user-data && . /answers/user-data
    umount /answers
done
echo "answered: $host_name"
dd if=/installed of=/dev/sda 2>/dev/null
name=$(printf '%-{NAME_ROOM}.{NAME_ROOM}s' "$host_name")
echo -n "$name" | dd of=/dev/sda bs=1 seek={len(START) + 3} conv=notrunc 2>/dev/null
sync
poweroff -f
"""


def make_kernel_iso(directory: Path) -> Path:
    """The image; downloads the kernel from the archive of this machine's own apt sources."""
    tree, image = directory / "cd", directory / "kernel.iso"
    tree.mkdir()
    kernel = _unpack_kernel(directory / "kernel")
    shutil.copy(next(kernel.glob("boot/vmlinuz-*")), tree / "vmlinuz")
    _make_initrd(kernel, directory / "initrd", tree / "initrd")
    _make_grub(directory / "grub.cfg", tree / "eltorito.img")
    boot = [
        "-b",
        "eltorito.img",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
        "-c",
        "boot.cat",
    ]
    _run("xorriso", "-as", "mkisofs", "-quiet", "-r", *boot, "-o", str(image), str(tree))
    return image


def _unpack_kernel(directory: Path) -> Path:
    directory.mkdir()
    depends = _run("apt-cache", "depends", "--important", KERNEL)
    package = next(line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line)
    _run("apt-get", "-q", "download", package, directory=directory)
    _run("dpkg-deb", "--extract", *map(str, directory.glob("*.deb")), str(directory))
    return directory


def _make_initrd(kernel: Path, root: Path, archive: Path) -> None:
    for name in ("bin", "modules", "proc", "sys", "dev", "answers"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    for pattern in MODULES:
        for module in kernel.glob(f"lib/modules/**/{pattern}.ko"):
            shutil.copy(module, root / "modules")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "installed").write_bytes(boot_sector(say(b" " * NAME_ROOM + b" installed\r\n"), HANG))
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*"))
    words = ["busybox", "cpio", "-o", "-H", "newc"]
    done = subprocess.run(words, cwd=root, input=names.encode(), capture_output=True, check=True)
    archive.write_bytes(done.stdout)


def _make_grub(menu: Path, image: Path) -> None:
    menu.write_text(GRUB_MENU)
    modules = "biosdisk iso9660 linux normal search search_fs_file"
    limited = [f"--install-modules={modules}", f"--modules={modules}", "--locales=", "--fonts=", "--themes="]
    _run(
        "grub-mkstandalone",
        "-O",
        "i386-pc-eltorito",
        "-o",
        str(image),
        *limited,
        f"boot/grub/grub.cfg={menu}",
    )


def _run(*words: str, directory: Path | None = None) -> str:
    return subprocess.run(words, cwd=directory, check=True, capture_output=True, text=True).stdout
