"""VMDK streams that qemu-img writes: decoded here and there to the same disk."""

import random
import subprocess
from pathlib import Path

import pytest

from pvccommon.images.streamoptimized import StreamOptimizedDecoder

MIB = 2**20
GRAIN = 64 * 1024

# Name -> size, and where data lies (offset, length).
SHAPES = {
    "one sector": (512, [(0, 512)]),
    "empty": (64 * MIB, []),
    "holes": (
        96 * MIB,
        [(0, 4096), (5 * MIB + 512, 3 * GRAIN), (32 * MIB - GRAIN, 2 * GRAIN), (96 * MIB - 512, 512)],
    ),
    "full": (4 * MIB, [(0, 4 * MIB)]),
    "odd end": (3 * MIB + 7 * 512, [(3 * MIB - 512, 8 * 512)]),
    "far apart": (20 * 1024 * MIB, [(0, GRAIN), (20 * 1024 * MIB - GRAIN, GRAIN)]),
}  # fmt: skip


def convert(source: Path, target: Path, source_format: str, *target_format: str) -> None:
    subprocess.run(
        ["qemu-img", "convert", "-q", "-f", source_format, "-O", *target_format, source, target], check=True
    )


def write_raw(path: Path, size: int, places: list[tuple[int, int]]) -> None:
    dice = random.Random(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in places:
            file.seek(offset)
            file.write((dice.randbytes(length // 2) * 2)[:length])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_disk_as_by_qemu_img(shape: str, tmp_path: Path) -> None:
    size, places = SHAPES[shape]
    raw, vmdk, ours = tmp_path / "raw", tmp_path / "vmdk", tmp_path / "ours"
    write_raw(raw, size, places)
    convert(raw, vmdk, "raw", "vmdk", "-o", "subformat=streamOptimized")
    with vmdk.open("rb", buffering=0) as source, ours.open("wb") as target:
        decoder = StreamOptimizedDecoder(source)
        assert decoder.virtual_bytes == size
        target.truncate(size)
        for offset, data in decoder.runs():
            target.seek(offset)
            target.write(data)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", raw, ours], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", vmdk, ours], check=True)
