"""The import of an image, by the client over HTTP, next to `qemu-img convert` of the same file.

Both are done in turn, several times, in one run, into the same file system; what counts is the ratio of the
medians.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from devstack import process
from devstack.process import Process
from devstack.stack import Stack, temporary_stack
from pvccommon.errors import EnvironmentFault
from pvccommon.run import run
from pvccommon.storage.directory import DirectoryPool

MIB = 1024**2
DATA_MIB = 1024
PIECE_BYTES = 4 * MIB
TIMEOUT_S = 1800
RATIO_LIMIT = 0.9
WRITTEN_LIMIT = 1.05
API_LIMIT_MB = 200
# What real disks hold: programs and libraries.
FILES = Path("/usr/lib")

Pvc = Callable[..., str]


@dataclass
class ImportFigures:
    """Seconds of each round; sizes: of the file, of the data in it, written to the pool, peak of the API."""

    converted: list[float] = field(default_factory=list)
    imported: list[float] = field(default_factory=list)
    file_bytes: int = 0
    data_bytes: int = 0
    written_bytes: int = 0
    api_bytes: int = 0


def measure_import(rounds: int, pvc_of: Callable[[Stack], Pvc]) -> ImportFigures:
    """A first round is not counted; then both ways in turn, and each begins every other round."""
    figures = ImportFigures()
    with temporary_stack() as stack:
        pvc, pool = pvc_of(stack), DirectoryPool("vms", stack.state / "pools" / "vms")
        vmdk = make_vmdk(stack.state.path)
        figures.file_bytes = vmdk.stat().st_size

        def convert() -> None:
            seconds, figures.data_bytes = convert_image(vmdk, stack.state / "pools" / "converted.raw")
            figures.converted.append(seconds)

        def upload() -> None:
            figures.imported.append(upload_image(pvc, vmdk))
            figures.written_bytes = written(pool)
            pvc("provisioner", "image", "delete", "bench", "--yes")

        for number in range(rounds + 1):
            for way in (convert, upload) if number % 2 else (upload, convert):
                os.sync()
                way()
        figures.api_bytes = peak_bytes(stack, "api")
    del figures.converted[0], figures.imported[0]
    return figures


def make_vmdk(directory: Path) -> Path:
    """A VMDK stream: half files of this system, a quarter random, a quarter of one pattern; and holes."""
    raw, vmdk = directory / "disk.raw", directory / "disk.vmdk"
    files = file_pieces()
    pattern = bytes(range(1, 129)) * (PIECE_BYTES // 128)
    makers = cycle(
        (lambda: next(files), lambda: os.urandom(PIECE_BYTES), lambda: next(files), lambda: pattern)
    )
    with raw.open("wb") as file:
        for number in range(DATA_MIB * MIB // PIECE_BYTES):
            file.seek(number * 2 * PIECE_BYTES)
            file.write(next(makers)())
        file.truncate(DATA_MIB * 2 * MIB)
        os.fsync(file.fileno())
    options = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    run(["qemu-img", "convert", "-f", "raw", *options, raw, vmdk], timeout_s=TIMEOUT_S)
    raw.unlink()
    return vmdk


def file_pieces() -> Iterator[bytes]:
    """The files of this system one behind the other, again and again."""
    piece = bytearray()
    while True:
        for path in sorted(FILES.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            piece += path.read_bytes()
            while len(piece) >= PIECE_BYTES:
                yield bytes(piece[:PIECE_BYTES])
                del piece[:PIECE_BYTES]


def convert_image(vmdk: Path, target: Path) -> tuple[float, int]:
    """`qemu-img convert` to a file beside the pool's: (seconds, writing it out included; bytes it takes)."""
    started = time.monotonic()
    run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", vmdk, target], timeout_s=TIMEOUT_S)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds, occupied = time.monotonic() - started, target.stat().st_blocks * 512
    target.unlink()
    return seconds, occupied


def upload_image(pvc: Pvc, vmdk: Path) -> float:
    """Seconds of the command that uploads it in chunks, until the image is ready."""
    started = time.monotonic()
    options = "--type disk --format vmdk --pool vms".split()
    pvc("provisioner", "image", "upload", "bench", str(vmdk), *options)
    return time.monotonic() - started


def written(pool: DirectoryPool) -> int:
    """Bytes that the pool's files occupy."""
    return sum(path.lstat().st_blocks * 512 for path in pool.path.rglob("*") if path.is_file())


def peak_bytes(stack: Stack, service: str) -> int:
    """The most memory that any process of a service has had: of the API, each handles requests by itself."""
    main = Process.load_or_none(stack.state.record(service))
    peaks = [_peak_bytes(pid) for pid in process.tree(main)] if main else []
    if not peaks:
        raise EnvironmentFault(f"measure {service}", "it does not run")
    return max(peaks)


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def report_import(figures: ImportFigures) -> bool:
    """Print the lines; whether all limits hold."""
    converted, imported = statistics.median(figures.converted), statistics.median(figures.imported)
    ratio, share = converted / imported, figures.written_bytes / figures.data_bytes
    api_mb = figures.api_bytes / 1e6
    size = f"VMDK stream of {figures.file_bytes // MIB} MiB, {figures.data_bytes // MIB} MiB of data"
    print(f"{size + ', qemu-img convert':<64} {converted:7.2f} s")
    print(f"{size + ', import':<64} {imported:7.2f} s")
    print(f"{f'throughput of the import (at least {RATIO_LIMIT})':<64} {ratio:7.2f}")
    print(f"{f'memory of the API, peak (below {API_LIMIT_MB} MB)':<64} {api_mb:7.0f} MB")
    print(f"{f'written per byte of data (at most {WRITTEN_LIMIT})':<64} {share:7.2f}")
    return ratio >= RATIO_LIMIT and share <= WRITTEN_LIMIT and api_mb < API_LIMIT_MB
