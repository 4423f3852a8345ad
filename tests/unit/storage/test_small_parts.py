"""The parts of storage that need no device, no program and no root."""

import ctypes
import errno
import io
import os
from pathlib import Path

import pytest

from pvccommon.config import parse_config
from pvccommon.errors import Busy, EnvironmentFault, NoSpace, NotFound, WrongInput
from pvccommon.storage import BackingFile, add_partition, get_pool, pools_from_config, qemu_img
from pvccommon.storage.directory import DirectoryPool
from pvccommon.storage.export import _command
from pvccommon.storage.faults import fault, qemu_fault
from pvccommon.storage.image_lock import is_in_use, lock_file
from pvccommon.storage.loop import LoopConfig, LoopInfo64
from pvccommon.storage.partition import BlkpgIoctlArg, BlkpgPartition
from pvccommon.storage.pool import check_name, check_size
from pvccommon.storage.sparse import PIECE_BYTES, FileWriter, data_runs, read_pieces

GIB = 1024**3


@pytest.mark.parametrize("name", ["web1_sda", "a", "9", "Golden.image-1_x", "x" * 128])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".x", "-x", "_x", "../x", "a/b", "a@b", "a b", "a\n", "a\0", "é", "x" * 129]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(WrongInput, match="volume name"):
        check_name(name)


@pytest.mark.parametrize(("asked", "given"), [(1, 512), (512, 512), (513, 1024), (GIB, GIB)])
def test_sizes_become_whole_sectors(asked: int, given: int) -> None:
    assert check_size("vms/x", asked, GIB) == given


@pytest.mark.parametrize("asked", [0, -512, GIB + 1])
def test_bad_sizes_are_refused(asked: int) -> None:
    with pytest.raises(WrongInput, match="vms/x"):
        check_size("vms/x", asked, GIB)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, NoSpace),
        (errno.EBUSY, Busy),
        (errno.EAGAIN, Busy),
        (errno.EACCES, EnvironmentFault),
        (errno.EIO, EnvironmentFault),
    ],
)
def test_system_errors_have_kinds(number: int, expected: type[Exception]) -> None:
    assert type(fault("do it", OSError(number, os.strerror(number)))) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("qemu-img: x: Could not resize file: No space left on device", NoSpace),
        (
            'qemu-img: Could not open: Failed to get "write" lock\nIs another process using the image [x]?',
            Busy,
        ),
        ("qemu-img: Unknown driver 'x'", EnvironmentFault),
        ("", EnvironmentFault),
    ],
)
def test_qemu_errors_have_kinds(message: str, expected: type[Exception]) -> None:
    assert type(qemu_fault("do it", message)) is expected


class TestImageLock:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        path = tmp_path / "image"
        path.write_bytes(bytes(512))
        return path

    @pytest.mark.parametrize(
        ("first_read_only", "second_read_only", "allowed"),
        [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
    )
    def test_writers_are_alone_and_readers_share(
        self, image: Path, first_read_only: bool, second_read_only: bool, allowed: bool
    ) -> None:
        first = lock_file(image, "first", read_only=first_read_only)
        if allowed:
            os.close(lock_file(image, "second", read_only=second_read_only))
        else:
            with pytest.raises(Busy, match="second"):
                lock_file(image, "second", read_only=second_read_only)
        os.close(first)
        os.close(lock_file(image, "third"))

    def test_use_can_be_asked_for(self, image: Path) -> None:
        assert not is_in_use(image)
        fd = lock_file(image, "mine")
        assert is_in_use(image)
        os.close(fd)
        assert not is_in_use(image)


class TestSparse:
    def test_content_survives_and_zeros_take_no_space(self, tmp_path: Path) -> None:
        data = (os.urandom(5000) + bytes(3 * PIECE_BYTES) + os.urandom(100)).ljust(5 * PIECE_BYTES, b"\0")
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, len(data))
        writer = FileWriter(fd, len(data), "import")
        for offset, piece in data_runs(io.BytesIO(data), len(data), "import"):
            writer.write(offset, bytes(piece))
        assert b"".join(read_pieces(fd, len(data))) == data
        assert os.fstat(fd).st_blocks * 512 < PIECE_BYTES
        os.close(fd)

    def test_pieces_are_bounded(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 3 * PIECE_BYTES + 7)
        assert [len(piece) for piece in read_pieces(fd, 3 * PIECE_BYTES + 7)] == [*[PIECE_BYTES] * 3, 7]
        os.close(fd)

    def test_a_file_cut_while_read_is_an_error(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 100)
        with pytest.raises(OSError, match="ends before"):
            list(read_pieces(fd, 5000))
        os.close(fd)


class TestKernelStructures:
    """Sizes from linux/loop.h and linux/blkpg.h on 64-bit machines."""

    def test_sizes(self) -> None:
        assert ctypes.sizeof(LoopInfo64) == 232
        assert ctypes.sizeof(LoopConfig) == 304
        assert ctypes.sizeof(BlkpgPartition) == 152
        assert ctypes.sizeof(BlkpgIoctlArg) == 24

    @pytest.mark.parametrize(
        ("number", "start", "size"),
        [(0, 512, 512), (129, 512, 512), (1, 0, 512), (1, 512, 0), (1, 100, 512), (1, 512, 100)],
    )
    def test_impossible_partitions_are_refused(self, number: int, start: int, size: int) -> None:
        with pytest.raises(WrongInput, match=f"partition {number}"):
            add_partition(-1, number, start, size)


class TestQemuCommands:
    def test_every_image_of_a_chain_has_its_format_and_no_other(self) -> None:
        files = [BackingFile("/p/c", "qcow2"), BackingFile("/p/b", "qcow2"), BackingFile("/p/a", "raw")]
        node = qemu_img.chain(files, writable=True)
        drivers, writable = [], []
        while node:
            drivers.append((node["driver"], node["file"]["filename"]))
            writable.append(not node["read-only"] and not node["file"]["read-only"])
            node = node.get("backing") or {}
        assert drivers == [("qcow2", "/p/c"), ("qcow2", "/p/b"), ("raw", "/p/a")]
        assert writable == [True, False, False]

    def test_a_chain_that_ends_says_so(self) -> None:
        assert qemu_img.chain([BackingFile("/p/c", "qcow2")])["backing"] is None

    def test_create_names_both_formats(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines: list[list[str]] = []
        monkeypatch.setattr(qemu_img, "run", lambda argv, **options: lines.append(argv))
        qemu_img.create("/p/x", "qcow2", GIB, backing=BackingFile("../a/data.raw", "raw"))
        expected = "qemu-img create -q -f qcow2 -b ../a/data.raw -F raw -u /p/x 1073741824"
        assert lines == [expected.split()]

    def test_the_export_stands_before_the_monitor_greets(self) -> None:
        command = _command({"driver": "raw"}, True, "/some/file")
        options = [part for part in command if part.startswith("--")]
        assert options == ["--blockdev", "--export", "--chardev", "--monitor"]
        assert '"writable": false' in command[4]


class TestRegistry:
    def test_pools_come_from_the_configuration_and_touch_nothing(self, tmp_path: Path) -> None:
        document = {
            "state_directory": str(tmp_path / "state"),
            "storage": {"pools": {"vms": {}, "fast": {"path": str(tmp_path / "fast"), "format": "qcow2"}}},
        }
        pools = pools_from_config(parse_config(document))
        vms, fast = pools["vms"], pools["fast"]
        assert isinstance(vms, DirectoryPool) and isinstance(fast, DirectoryPool)
        assert (vms.path, fast.path) == (tmp_path / "state/pools/vms", tmp_path / "fast")
        assert list(tmp_path.iterdir()) == []

    def test_the_limit_is_the_configured_one(self, tmp_path: Path) -> None:
        pools_section = {"vms": {"path": str(tmp_path / "vms")}}
        config = parse_config({"storage": {"pools": pools_section, "max_volume_gib": 1}})
        pool = pools_from_config(config)["vms"]
        pool.create_volume("fits", GIB)
        with pytest.raises(WrongInput) as caught:
            pool.create_volume("does-not", GIB + 1)
        assert "max_volume_gib" in caught.value.hint

    def test_an_unknown_pool_is_named_with_those_there_are(self, tmp_path: Path) -> None:
        pools = {"vms": DirectoryPool("vms", tmp_path)}
        assert get_pool(pools, "vms") is pools["vms"]
        with pytest.raises(NotFound) as caught:
            get_pool(pools, "ssd")
        assert "vms" in caught.value.hint


def test_a_pool_that_cannot_be_reached_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pool = DirectoryPool("vms", tmp_path / "file" / "pool")
    for call in (pool.list_volumes, pool.space, pool.sweep, lambda: pool.volume_or_none("x")):
        with pytest.raises(EnvironmentFault, match="vms"):
            call()
