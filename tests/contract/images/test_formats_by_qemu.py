"""Images of every format, as qemu-img and xorriso write them, are known for what they are."""

import json
import os
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
