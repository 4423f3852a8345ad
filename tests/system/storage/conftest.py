"""Real loop devices, exports and mounts: root only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "contract" / "storage"))


@pytest.fixture(autouse=True)
def _abilities() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("needs loop devices")
    for program in ("qemu-img", "qemu-storage-daemon", "setpriv", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def traces(path: Path) -> dict[str, object]:
    """What this directory's volumes occupy on the machine: loop devices, partitions, processes, mounts."""
    devices = {
        device.name
        for device in Path("/sys/block").glob("loop*")
        if (backing := device / "loop" / "backing_file").exists() and str(path) in _text(backing)
    }
    processes = {
        process.name
        for process in Path("/proc").glob("[0-9]*")
        if str(path) in _text(process / "cmdline") and process.name != str(os.getpid())
    }
    return {
        "devices": devices,
        "processes": processes,
        "mounts": [line for line in _text(Path("/proc/self/mounts")).splitlines() if str(path) in line],
        "exports": [
            line for line in _text(Path("/proc/self/mounts")).splitlines() if "fuse" in line.split()[2]
        ],
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, OSError):
        return ""


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Compares the machine after the test with the machine before."""
    before = traces(tmp_path)
    yield
    assert traces(tmp_path) == before


@pytest.fixture
def small_filesystem(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "pvc-test", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)
