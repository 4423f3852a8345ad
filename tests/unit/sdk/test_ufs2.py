"""UFS2 file systems, read back by a reader of our own that checks what fsck checks."""

import mmap
import os
import stat
from pathlib import Path

import pytest
from ufs2_reader import Ufs2

from vmbuilder import ufs2
from vmbuilder.errors import ProvisioningError, ValidationError

MIB = 1024**2


def made(tmp_path: Path, tree: Path, size: int) -> Ufs2:
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(size)
    ufs2.make(str(image), size, tree, "rootfs")
    with image.open("rb") as stream:
        return Ufs2(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


def test_files_of_every_size_come_back(tree: Path, tmp_path: Path) -> None:
    """Around fragments, blocks, the twelve direct blocks."""
    block = 32768
    sizes = (
        0,
        1,
        4095,
        4096,
        4097,
        block,
        block + 1,
        12 * block - 1,
        12 * block,
        12 * block + 1,
        20 * block + 7,
    )
    for size in sizes:
        (tree / str(size)).write_bytes(os.urandom(size))
    found = made(tmp_path, tree, 64 * MIB)
    found.check()
    for size in sizes:
        inode = found.inode(found.tree[f"/{size}"])
        assert found.content(inode) == (tree / str(size)).read_bytes()


def test_links_modes_and_names(tree: Path, tmp_path: Path) -> None:
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "file").write_text("text")
    (tree / "a" / "file").chmod(0o4711)
    os.link(tree / "a" / "file", tree / "also")
    (tree / "short").symlink_to("a/file")
    (tree / "long").symlink_to("x" * 300)
    (tree / "ünï").write_text("")
    for number in range(300):
        (tree / "a" / f"{'n' * (number % 200)}{number}").touch()
    found = made(tmp_path, tree, 64 * MIB)
    found.check()
    assert found.tree["/also"] == found.tree["/a/file"]
    inode = found.inode(found.tree["/also"])
    assert (stat.S_IMODE(inode.mode), inode.links, inode.uid) == (0o4711, 2, os.getuid())
    assert found.content(found.inode(found.tree["/short"])) == b"a/file"
    assert found.content(found.inode(found.tree["/long"])) == b"x" * 300
    walked = [(place, name) for place, below, files in os.walk(tree) for name in (*below, *files)]
    names = {f"/{Path(place, name).relative_to(tree)}" for place, name in walked}
    assert set(found.tree) == names | {"/"}


def test_a_file_may_be_larger_than_a_group_and_takes_no_room_where_it_is_empty(
    tree: Path, tmp_path: Path
) -> None:
    size = 700 * MIB
    with (tree / "large").open("wb") as stream:
        stream.truncate(size)
        for place in (0, 200 * MIB, 641 * MIB, size - 5):
            stream.seek(place)
            stream.write(b"mark!")
    found = made(tmp_path, tree, 1024 * MIB)
    assert found.groups == 2
    found.check()
    inode = found.inode(found.tree["/large"])
    assert inode.size == size
    blocks = [block for block, _ in inode.blocks]
    for place in (0, 200 * MIB, 641 * MIB):
        assert found.at(blocks[place // 32768], 5) == b"mark!"
    assert (tmp_path / "image").stat().st_blocks * 512 < 4 * MIB


@pytest.mark.parametrize("size", [640 * MIB, 641 * MIB, 660 * MIB, 1280 * MIB + 20480])
def test_last_group_may_be_short_or_left_out(tree: Path, tmp_path: Path, size: int) -> None:
    found = made(tmp_path, tree, size)
    found.check()
    assert found.size * 4096 > size - 21 * MIB


def test_what_does_not_fit_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="too few"):
        made(tmp_path, tree, 8 * MIB)
    with (tree / "large").open("wb") as stream:
        stream.truncate(40 * MIB)
    with pytest.raises(ValidationError, match="do not fit"):
        made(tmp_path, tree, 40 * MIB)


def test_what_is_no_file_is_refused(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(ProvisioningError, match="is no file, directory or link"):
        made(tmp_path, tree, 64 * MIB)
