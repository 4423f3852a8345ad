"""Programs for a PC without any system: what a test's ISO image and the disk it "installs" consist of.

16-bit machine code for the BIOS, put together from small pieces. A program is loaded at 0x7c00, be it from a
CD-ROM or from a disk, and ends with a piece that does not return.
"""

import struct
import subprocess
from pathlib import Path

ORIGIN = 0x7C00
SECTOR = 512
CD_SECTORS = 4  # what El Torito has the BIOS load, in sectors of 512
FIRST_DISK = 0x80

# cli; xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00; sti; cld
START = bytes.fromhex("fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc")
# Port 0x604 is the q35 machine's PM1a control register (ACPI): sleep type S5, sleep enable.
POWER_OFF = bytes.fromhex("ba0406 b80020 ef ebfe")
# Port 0xcf9: full reset.
REBOOT = bytes.fromhex("baf90c b006 ee ebfe")
HANG = bytes.fromhex("f4 ebfd")


def say(text: bytes) -> bytes:
    """Write to the first serial port, which QEMU's takes without being set up.

    call over the text; pop si; mov cx,len; mov dx,0x3f8; next: lodsb; out dx,al; loop next
    """
    call = b"\xe8" + struct.pack("<h", len(text)) + text
    return call + b"\x5e\xb9" + struct.pack("<H", len(text)) + bytes.fromhex("baf803 ac ee e2fc")


def write_disk(offset: int) -> bytes:
    """Write the sector found at `offset` of this program to the beginning of the first disk (int 13h, 03)."""
    address = struct.pack("<H", ORIGIN + offset)
    return b"\xbb" + address + bytes.fromhex("b80103 b90100") + b"\xba" + bytes([FIRST_DISK, 0]) + b"\xcd\x13"


def boot_sector(*pieces: bytes) -> bytes:
    """What a disk starts with, so that it boots."""
    code = START + b"".join(pieces)
    assert len(code) <= SECTOR - 2
    return code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def installer(*pieces: bytes, installs: bytes = b"") -> bytes:
    """A program for a CD-ROM: with `installs`, it first writes this boot sector to the disk."""
    offset = (CD_SECTORS - 1) * SECTOR
    code = START + (write_disk(offset) if installs else b"") + b"".join(pieces)
    assert len(code) <= offset
    return code.ljust(offset, b"\0") + installs.ljust(SECTOR, b"\0")


def make_boot_iso(program: bytes, directory: Path) -> Path:
    """An ISO image from which a BIOS starts the program (El Torito, no emulation)."""
    tree, image = directory / "tree", directory / "boot.iso"
    tree.mkdir(exist_ok=True)
    (tree / "boot.bin").write_bytes(program)
    boot = ["-b", "boot.bin", "-no-emul-boot", "-boot-load-size", str(CD_SECTORS), "-c", "boot.cat"]
    words = ["xorriso", "-as", "mkisofs", "-quiet", *boot, "-o", image, tree]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    return image
