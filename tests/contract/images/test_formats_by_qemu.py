"""Images of every format, as qemu-img and xorriso write them, are known for what they are."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from pvccommon.errors import WrongInput
from pvccommon.images.byte_reader import FileReader
from pvccommon.images.formats import inspect_image, qemu_format
from pvccommon.images.inspection import ImageInfo

MIB = 2**20


def inspect(image_format: str, path: Path) -> ImageInfo:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect_image(image_format, FileReader(fd))
    finally:
        os.close(fd)


def make(path: Path, image_format: str, *options: str) -> None:
    command = ["qemu-img", "create", "-q", "-f", qemu_format(image_format), *options, path, str(20 * MIB)]
    subprocess.run(command, check=True)
    write = "write -P 7 5M 200k"
    subprocess.run(
        ["qemu-io", "-f", qemu_format(image_format), "-c", write, path], check=True, capture_output=True
    )


@pytest.mark.parametrize(
    ("image_format", "options", "subformat"),
    [
        ("raw", (), ""),
        ("qcow2", (), "version 3"),
        ("qcow2", ("-o", "compat=0.10"), "version 2"),
        ("qcow2", ("-o", "extended_l2=on,compression_type=zstd"), "version 3"),
        ("qcow2", ("-o", "cluster_size=512"), "version 3"),
        ("vmdk", (), "monolithicSparse"),
        ("vhd", (), "dynamic"),
        ("vhd", ("-o", "subformat=fixed"), "fixed"),
        ("vhdx", (), "dynamic"),
        ("vdi", (), "dynamic"),
        ("vdi", ("-o", "static=on"), "static"),
    ],
)
def test_the_same_size_as_by_qemu_img(
    image_format: str, options: tuple[str, ...], subformat: str, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    make(path, image_format, *options)
    command = ["qemu-img", "info", "--output=json", "-f", qemu_format(image_format), path]
    size = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["virtual-size"]
    info = inspect(image_format, path)
    assert (info.subformat, info.virtual_bytes) == (subformat, size)
    assert info.warnings == ()


@pytest.mark.parametrize(
    ("image_format", "options", "reason"),
    [
        ("qcow2", ("-o", "data_file={0}/data"), "keeps its data in another file"),
        ("qcow2", ("-b", "{0}/base", "-F", "raw"), "has a backing file"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "is only a descriptor"),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse"), "is only a descriptor"),
    ],
)
def test_images_that_name_other_files(
    image_format: str, options: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "base").write_bytes(bytes(20 * MIB))
    path = tmp_path / "image.vmdk"
    make(path, image_format, *(option.format(tmp_path) for option in options))
    with pytest.raises(WrongInput) as caught:
        inspect(image_format, path)
    assert reason in caught.value.message


def test_encrypted_and_with_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "image"
    secret = ["--object", "secret,id=s,data=abc", "-o", "encrypt.format=aes,encrypt.key-secret=s"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *secret, path, "1M"], check=True)
    with pytest.raises(WrongInput, match="is encrypted"):
        inspect("qcow2", path)
    make(path, "qcow2")
    for number in range(17):
        subprocess.run(["qemu-img", "snapshot", "-c", f"s{number}", path], check=True)
    with pytest.raises(WrongInput, match="has 17 snapshots"):
        inspect("qcow2", path)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        *[("qcow2", ("-o", f"preallocation={how}")) for how in ("metadata", "falloc", "full")],
        ("qcow2", ("-o", "preallocation=metadata,extended_l2=on")),
        ("qcow2", ("-o", "preallocation=metadata,cluster_size=2M")),
        ("vhdx", ("-o", "subformat=fixed")),
        *[(form, ()) for form in ("qcow2", "vmdk", "vhd", "vhdx", "vdi")],
    ],
)
def test_full_images(image_format: str, options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, image_format, *options)
    inspect(image_format, path)
    fill(path, image_format)
    assert inspect(image_format, path).warnings == ()


@pytest.mark.parametrize("options", ["cluster_size=64k", "compression_type=zstd", "cluster_size=512"])
def test_compressed_clusters_take_less_than_their_size(options: str, tmp_path: Path) -> None:
    make(tmp_path / "plain", "qcow2")
    fill(tmp_path / "plain", "qcow2")
    path = tmp_path / "image"
    command = [
        "qemu-img",
        "convert",
        "-c",
        "-f",
        "qcow2",
        "-O",
        "qcow2",
        "-o",
        options,
        tmp_path / "plain",
        path,
    ]
    subprocess.run(command, check=True)
    assert path.stat().st_size < 10 * MIB
    inspect("qcow2", path)


def test_full_with_snapshots(tmp_path: Path) -> None:
    """Their clusters are the disk's, or of no disk: neither is counted twice."""
    path = tmp_path / "image"
    make(path, "qcow2")
    for number in range(4):
        fill(path, "qcow2")
        subprocess.run(["qemu-img", "snapshot", "-c", f"s{number}", path], check=True)
        assert "snapshots" in inspect("qcow2", path).warnings[0]
    subprocess.run(["qemu-img", "snapshot", "-a", "s1", path], check=True)
    inspect("qcow2", path)


def test_one_cluster_many_times_of_which_qemu_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    options = "cluster_size=2M,refcount_bits=64"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "6G"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 2M", path], check=True, capture_output=True)
    name_first_cluster_everywhere(path, 2 * MIB, 3072)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    with pytest.raises(
        WrongInput, match="the qcow2 clusters in use do not fit into the file: 3072 or more of 2 MiB"
    ):
        inspect("qcow2", path)


def fill(path: Path, image_format: str) -> None:
    command = ["qemu-io", "-f", qemu_format(image_format), "-c", "write -P 9 0 20M", path]
    subprocess.run(command, check=True, capture_output=True)


def name_first_cluster_everywhere(path: Path, cluster: int, times: int) -> None:
    """With the reference counts, of 64 bits, that go with it."""
    with path.open("r+b") as file:

        def number(place: int) -> int:
            file.seek(place)
            return int.from_bytes(file.read(8), "big") & 0x00FFFFFFFFFFFE00

        table = number(number(40))  # the first L2 table, of the L1 table that the header gives
        data = number(table)
        counts = number(number(48))  # likewise for reference counts
        file.seek(table)
        file.write(struct.pack(">Q", data) * times)
        file.seek(counts + 8 * (data // cluster))
        file.write(struct.pack(">Q", times))
