"""A disk of 50 GiB that is nearly empty, by the client over HTTP: what it costs is its data, not its size."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from devstack import Stack, process, temporary_stack
from devstack.process import Process
from pvccommon.storage.directory import DirectoryPool

pytestmark = pytest.mark.system

MIB, GIB = 1024**2, 1024**3
SIZE_BYTES = 50 * GIB
PLACES = (0, 7 * GIB + 4096, 25 * GIB, 49 * GIB + 777 * MIB, SIZE_BYTES - MIB)
API_LIMIT_BYTES = 200_000_000
PVC = Path(__file__).parents[3] / "dev" / "bin" / "pvc"


def test_a_disk_of_50_gib_takes_no_more_than_its_data(tmp_path: Path) -> None:
    raw, vmdk = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    with raw.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for place in PLACES:
            os.pwrite(file.fileno(), os.urandom(MIB), place)
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", str(raw), str(vmdk))
    with temporary_stack() as stack:
        began = time.monotonic()
        upload = (str(PVC), "--quiet", "provisioner", "image", "upload", "large", str(vmdk))
        run(*upload, "--type", "disk", "--format", "vmdk", "--pool", "vms", env=stack.environment())
        assert time.monotonic() - began < 30
        volume = frozen_file(stack)
        assert volume.stat().st_size == SIZE_BYTES
        assert volume.stat().st_blocks * 512 <= 1.05 * len(PLACES) * MIB
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(raw), str(volume))
        assert 0 < peak_bytes(stack, "api") < API_LIMIT_BYTES


def run(*argv: str, env: dict[str, str] | None = None) -> None:
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def frozen_file(stack: Stack) -> Path:
    """What the image's volume stands on since it has its snapshot."""
    pool = DirectoryPool("vms", stack.state / "pools" / "vms")
    (volume,) = pool.list_volumes()
    (backing,) = pool.disk_source(volume.name).backing
    return Path(backing.path)


def peak_bytes(stack: Stack, service: str) -> int:
    """The most memory that any process of a service has had."""
    main = Process.load_or_none(stack.state.record(service))
    assert main is not None
    return max(peak_of(pid) for pid in process.tree(main))


def peak_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
