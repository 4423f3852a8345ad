"""Booting a disk image with plain QEMU and watching its serial console."""

import re
import shutil
import subprocess
import time
from pathlib import Path

_ESCAPES = re.compile(rb"\x1b\[[0-9;?=]*[A-Za-z]|\r")
OVMF = Path("/usr/share/OVMF")


def boot(image: Path, wanted: str, directory: Path, *, uefi: bool, timeout_s: float) -> str:
    """Boot a snapshot of a raw image until `wanted` shows; returns the console. Else AssertionError."""
    console = directory / "console.log"
    with subprocess.Popen(_command(image, console, directory, uefi), stdin=subprocess.DEVNULL) as machine:
        try:
            return _watch(machine, console, wanted, time.monotonic() + timeout_s)
        finally:
            machine.kill()


def _watch(machine: subprocess.Popen[bytes], console: Path, wanted: str, deadline: float) -> str:
    text = ""
    while time.monotonic() < deadline and machine.poll() is None:
        time.sleep(0.5)
        text = _ESCAPES.sub(b"", console.read_bytes()).decode(errors="replace") if console.exists() else ""
        if wanted in text:
            return text
    raise AssertionError(f"{wanted!r} did not show; the end of the console was:\n{text[-3000:]}")


def _command(image: Path, console: Path, directory: Path, uefi: bool) -> list[str]:
    """Software emulation always: the same everywhere, and enough for a login prompt."""
    argv = [
        "qemu-system-x86_64",
        "-machine",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-m",
        "1024",
    ]
    argv += [
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        f"file:{console}",
        "-snapshot",
        "-nic",
        "none",
    ]
    argv += ["-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,drive=disk,bus=scsi0.0"]
    argv += ["-drive", f"file={image},format=raw,if=none,id=disk", "-device", "virtio-rng-pci"]
    if uefi:
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", directory / "vars.fd")
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd"]
        argv += ["-drive", f"if=pflash,format=raw,file={directory}/vars.fd"]
    return argv
