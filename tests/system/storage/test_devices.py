"""Volumes as block devices: content, exclusion, partitions, and what a killed process leaves."""

import fcntl
import mmap
import os
import random
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_helpers import MIB, SIZE, TEXT, everything_in, fill, qemu_content

from pvccommon.errors import Busy, EnvironmentFault, NoSpace, WrongInput, WrongState
from pvccommon.storage import BlockDevice, StoragePool, add_partition, delete_partition
from pvccommon.storage.directory import DirectoryPool
from pvccommon.storage.image_lock import is_in_use

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("nothing_left")]

BLKDISCARD = 0x1277
KINDS = ("raw", "qcow2", "clone", "exported")


def make_pool(kind: str, path: Path) -> DirectoryPool:
    """A pool with a volume web1_sda of 64 MiB that is one of KINDS and begins with TEXT."""
    pool = DirectoryPool("vms", path / "pool", mapping="export" if kind == "exported" else "auto")
    fill(pool, "web1_sda", size_bytes=64 * MIB)
    if kind == "qcow2":
        pool.create_snapshot("web1_sda", "s")
    if kind == "clone":
        pool.rename_volume("web1_sda", "golden")
        pool.clone_volume("golden", "web1_sda")
    return pool


@pytest.fixture(params=KINDS)
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> DirectoryPool:
    return make_pool(request.param, tmp_path)


class TestContent:
    def test_what_is_written_is_read_back_by_qemu(self, pool: DirectoryPool) -> None:
        data = os.urandom(4 * MIB)
        with pool.open_device("web1_sda") as device:
            assert os.pread(device.fd, len(TEXT), 0) == TEXT
            os.pwrite(device.fd, data, 20 * MIB)
        content = qemu_content(pool.disk_source("web1_sda"))
        assert len(content) == 64 * MIB
        assert content.startswith(TEXT)
        assert content[20 * MIB : 24 * MIB] == data

    def test_the_device_is_what_it_says(self, pool: DirectoryPool) -> None:
        with pool.open_device("web1_sda") as device:
            found = os.stat(device.path)
            assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (device.major, device.minor)
            assert device.path == f"/dev/{device.name}"
            assert int(Path(f"/sys/block/{device.name}/size").read_text()) * 512 == 64 * MIB

    def test_a_file_system_survives(self, pool: DirectoryPool) -> None:
        with pool.open_device("web1_sda") as device:
            in_private_mounts(
                f"mkfs.ext4 -qF {device.path} && mount {device.path} /mnt"
                " && cp -a /usr/share/doc/apt /mnt && umount /mnt"
            )
        with pool.open_device("web1_sda", read_only=True) as device:
            in_private_mounts(
                f"mount -o ro {device.path} /mnt && diff -r /usr/share/doc/apt /mnt/apt && umount /mnt"
            )
            subprocess.run(["e2fsck", "-fn", device.path], check=True, capture_output=True)

    def test_discarding_frees_the_pool(self, pool: DirectoryPool) -> None:
        with pool.open_device("web1_sda") as device:
            os.pwrite(device.fd, os.urandom(32 * MIB), 0)
        assert pool.stat_volume("web1_sda").used_bytes >= 32 * MIB
        with pool.open_device("web1_sda") as device:
            fcntl.ioctl(device.fd, BLKDISCARD, struct.pack("QQ", 0, 64 * MIB))
        assert pool.stat_volume("web1_sda").used_bytes < 2 * MIB
        assert not any(qemu_content(pool.disk_source("web1_sda")))

    def test_many_writers_at_once_do_not_mix(self, pool: DirectoryPool) -> None:
        """QEMU 7.2's export mixes up writes that arrive together; see export.py."""
        with pool.open_device("web1_sda") as device:
            writers = [Writer(device.path, number) for number in range(4)]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
        content = qemu_content(pool.disk_source("web1_sda"))
        for writer in writers:
            assert writer.mismatches == 0
            for slot, expected in writer.expected.items():
                assert content[slot * Writer.SLOT : (slot + 1) * Writer.SLOT] == expected

    def test_streams_give_the_content(self, pool: DirectoryPool) -> None:
        assert b"".join(pool.export_stream("web1_sda")) == TEXT.ljust(64 * MIB, b"\0")

    def test_a_stream_that_is_dropped_lets_go(self, pool: DirectoryPool) -> None:
        stream = pool.export_stream("web1_sda")
        next(stream)
        with pytest.raises(Busy):
            pool.delete_volume("web1_sda")
        del stream
        pool.delete_volume("web1_sda")


class Writer(threading.Thread):
    """Writes, reads back and checks its own quarter of the slots, past the page cache."""

    SLOT = 256 * 1024

    def __init__(self, path: str, number: int) -> None:
        super().__init__()
        self.path, self.number = path, number
        self.random = random.Random(number)
        self.expected: dict[int, bytes] = {}
        self.mismatches = 0

    def run(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        buffer = mmap.mmap(-1, self.SLOT)
        for _ in range(60):
            slot = self.random.randrange(64) * 4 + self.number
            if slot in self.expected and self.random.random() < 0.4:
                assert os.preadv(fd, [buffer], slot * self.SLOT) == self.SLOT
                self.mismatches += buffer[:] != self.expected[slot]
            else:
                self.expected[slot] = buffer[:] = self.random.randbytes(self.SLOT)
                assert os.pwrite(fd, buffer, slot * self.SLOT) == self.SLOT
        os.close(fd)


class TestExclusion:
    def test_a_second_opener_is_told_to_wait(self, pool: DirectoryPool, tmp_path: Path) -> None:
        other = DirectoryPool("vms", pool.path, mapping=pool._mapping)
        with pool.open_device("web1_sda"):
            for read_only in (False, True):
                with pytest.raises(Busy) as caught, other.open_device("web1_sda", read_only=read_only):
                    pass
                assert "vms/web1_sda" in caught.value.message and caught.value.hint
        with other.open_device("web1_sda"):
            pass

    def test_readers_share_and_keep_writers_out(self, pool: DirectoryPool) -> None:
        with (
            pool.open_device("web1_sda", read_only=True) as one,
            pool.open_device("web1_sda", read_only=True) as two,
        ):
            assert os.pread(one.fd, 7, 0) == os.pread(two.fd, 7, 0) == b"generic"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(one.fd, b"x" * 512, 0)
            with pytest.raises(Busy), pool.open_device("web1_sda"):
                pass

    def test_an_open_volume_is_not_changed(self, pool: DirectoryPool) -> None:
        with pool.open_device("web1_sda"):
            for refused in (
                lambda: pool.delete_volume("web1_sda"),
                lambda: pool.rename_volume("web1_sda", "new"),
                lambda: pool.resize_volume("web1_sda", 128 * MIB),
                lambda: pool.create_snapshot("web1_sda", "new"),
                lambda: next(pool.export_stream("web1_sda")),
            ):
                with pytest.raises(Busy):
                    refused()
            if pool.stat_volume("web1_sda").used_bytes:
                assert "web1_sda" in [volume.name for volume in pool.list_volumes()]

    def test_an_open_source_is_not_cloned(self, tmp_path: Path) -> None:
        pool = make_pool("raw", tmp_path)
        with pool.open_device("web1_sda"), pytest.raises(Busy):
            pool.clone_volume("web1_sda", "new")
        assert [volume.name for volume in pool.list_volumes()] == ["web1_sda"]

    def test_qemu_keeps_us_out_and_we_keep_qemu_out(self, pool: DirectoryPool) -> None:
        source = pool.disk_source("web1_sda")
        io = ["qemu-io", "-f", source.format, source.path]
        with pool.open_device("web1_sda"):
            refused = subprocess.run([*io, "-c", "write 0 512"], capture_output=True, text=True, check=False)
            assert "lock" in refused.stderr
        domain = subprocess.Popen(
            io, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert domain.stdin is not None and domain.stdout is not None
        domain.stdin.write(b"write 0 512\n")
        domain.stdin.flush()
        assert b"wrote" in domain.stdout.readline().replace(b"qemu-io> ", b"")
        for call in (
            lambda: pool.open_device("web1_sda").__enter__(),
            lambda: pool.delete_volume("web1_sda"),
        ):
            with pytest.raises(Busy):
                call()
        domain.communicate()
        pool.delete_volume("web1_sda")

    def test_a_mount_that_stays_is_reported_at_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pvccommon.storage.loop.CLEAR_TIMEOUT_S", 0.2)
        pool = make_pool("raw", tmp_path)
        with pytest.raises(Busy, match="still holds it") as caught, pool.open_device("web1_sda") as device:
            held = os.open(device.path, os.O_RDONLY)
        assert "lsof" in caught.value.hint
        with pytest.raises(Busy):
            pool.delete_volume("web1_sda")
        os.close(held)
        pool.delete_volume("web1_sda")

    def test_many_openers_at_once_get_devices_of_their_own(self, tmp_path: Path) -> None:
        pool = make_pool("raw", tmp_path)
        for number in range(8):
            pool.create_volume(f"v{number}", SIZE)
        threads = [
            threading.Thread(target=open_and_sign, args=(pool, f"v{n}", turns))
            for n, turns in enumerate([10] * 8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(8):
            assert qemu_content(pool.disk_source(f"v{number}")).startswith(f"v{number}:9".encode())


def open_and_sign(pool: StoragePool, name: str, turns: int) -> None:
    for turn in range(turns):
        with pool.open_device(name) as device:
            os.pwrite(device.fd, f"{name}:{turn}".encode().ljust(512, b"\0"), 0)


class TestPartitions:
    def test_they_come_and_go_with_the_device(self, pool: DirectoryPool) -> None:
        with pool.open_device("web1_sda") as device:
            first = add_partition(device.fd, 1, MIB, MIB)
            second = add_partition(device.fd, 2, 2 * MIB, 30 * MIB)
            assert (first.name, second.path) == (f"{device.name}p1", f"/dev/{device.name}p2")
            for partition in (first, second):
                found = os.stat(partition.path).st_rdev
                assert (os.major(found), os.minor(found)) == (partition.major, partition.minor)
            Path(second.path).write_bytes(b"in the second")
        assert not Path(f"/sys/block/{device.name}/{first.name}").exists()
        assert not Path(first.path).exists()
        assert qemu_content(pool.disk_source("web1_sda"))[2 * MIB :].startswith(b"in the second")

    def test_adding_and_deleting_can_be_repeated(self, tmp_path: Path) -> None:
        with make_pool("raw", tmp_path).open_device("web1_sda") as device:
            one = add_partition(device.fd, 1, MIB, MIB)
            assert add_partition(device.fd, 1, MIB, MIB) == one
            moved = add_partition(device.fd, 1, 4 * MIB, 2 * MIB)
            assert moved.partition.start_bytes == 4 * MIB
            delete_partition(device.fd, 1)
            delete_partition(device.fd, 1)
            assert not Path(f"/sys/block/{device.name}/{one.name}").exists()

    def test_partitions_cannot_overlap_or_leave_the_device(self, tmp_path: Path) -> None:
        with make_pool("raw", tmp_path).open_device("web1_sda") as device:
            add_partition(device.fd, 1, MIB, 4 * MIB)
            for start, size in ((2 * MIB, MIB), (64 * MIB, MIB), (63 * MIB, 2 * MIB)):
                with pytest.raises(WrongInput):
                    add_partition(device.fd, 2, start, size)

    def test_a_partition_in_use_stays(self, tmp_path: Path) -> None:
        with make_pool("raw", tmp_path).open_device("web1_sda") as device:
            partition = add_partition(device.fd, 1, MIB, 32 * MIB)
            held = os.open(partition.path, os.O_RDWR)
            with pytest.raises(Busy):
                delete_partition(device.fd, 1)
            os.close(held)

    def test_a_table_of_sfdisk_agrees(self, tmp_path: Path) -> None:
        with make_pool("raw", tmp_path).open_device("web1_sda") as device:
            table = "label: gpt\nsize=1MiB, type=21686148-6449-6E6F-744E-656564454649\nsize=8MiB\n"
            subprocess.run(
                ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", device.path],
                input=table,
                text=True,
                check=True,
            )
            add_partition(device.fd, 1, MIB, MIB)
            add_partition(device.fd, 2, 2 * MIB, 8 * MIB)
            shown = subprocess.run(
                ["partx", "-go", "NR,START,SECTORS", device.path], capture_output=True, text=True, check=True
            )
            known = [(p.number, p.start_bytes // 512, p.size_bytes // 512) for p in kernel_partitions(device)]
            assert [tuple(map(int, line.split())) for line in shown.stdout.splitlines()] == known


def kernel_partitions(device: BlockDevice):
    from pvccommon.storage.partition import list_partitions

    return [found.partition for found in list_partitions(device.fd)]


class TestKilled:
    @pytest.mark.parametrize("read_only", [False, True])
    def test_a_killed_opener_leaves_nothing(
        self, pool: DirectoryPool, tmp_path: Path, read_only: bool
    ) -> None:
        def use() -> None:
            with pool.open_device("web1_sda", read_only=read_only) as device:
                add_partition(device.fd, 1, MIB, MIB)
                if not read_only:
                    os.pwrite(device.fd, os.urandom(8 * MIB), 8 * MIB)
                os.write(ready, device.name.encode())
                time.sleep(60)

        done, ready = os.pipe()
        child = fork(use)
        name = os.read(done, 100).decode()
        assert Path(f"/sys/block/{name}/{name}p1").exists()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wait_until(lambda: not Path(f"/sys/block/{name}/loop/backing_file").exists())
        assert not Path(f"/dev/{name}p1").exists()
        wait_until(lambda: not storage_daemons(tmp_path))
        wait_until(lambda: not is_in_use(pool.disk_source("web1_sda").path))  # its files close last
        os.close(done), os.close(ready)
        with pool.open_device("web1_sda") as device:
            assert os.pread(device.fd, len(TEXT), 0) == TEXT
        assert pool.sweep() == []

    def test_an_error_inside_is_the_one_reported(self, pool: DirectoryPool) -> None:
        with pytest.raises(ZeroDivisionError), pool.open_device("web1_sda"):
            raise ZeroDivisionError
        pool.delete_volume("web1_sda")

    def test_the_thread_that_opened_may_end(self, tmp_path: Path) -> None:
        """The daemon's parent-death signal follows threads; see export.py."""
        pool = make_pool("qcow2", tmp_path)
        context = pool.open_device("web1_sda")
        opened: list[BlockDevice] = []
        thread = threading.Thread(target=lambda: opened.append(context.__enter__()))
        thread.start()
        thread.join()
        time.sleep(0.2)
        assert os.pread(opened[0].fd, len(TEXT), 0) == TEXT
        context.__exit__(None, None, None)

    def test_a_daemon_that_dies_is_an_error_not_a_hang(self, tmp_path: Path) -> None:
        pool = make_pool("qcow2", tmp_path)
        with pytest.raises(EnvironmentFault), pool.open_device("web1_sda") as device:
            os.pwrite(device.fd, os.urandom(MIB), 0)
            for process in storage_daemons(tmp_path):
                os.kill(process, signal.SIGKILL)
        with pool.open_device("web1_sda"):
            pass

    def test_loop_mapping_of_qcow2_is_refused_with_a_hint(self, tmp_path: Path) -> None:
        make_pool("qcow2", tmp_path)
        pool = DirectoryPool("vms", tmp_path / "pool", mapping="loop")
        with pytest.raises(WrongState) as caught, pool.open_device("web1_sda"):
            pass
        assert "storage.mapping" in caught.value.hint


class TestFullPool:
    def test_an_import_into_a_full_pool_leaves_nothing(self, small_filesystem: Path) -> None:
        pool = DirectoryPool("vms", small_filesystem / "pool")
        with pytest.raises(NoSpace) as caught, open("/dev/urandom", "rb") as stream:
            pool.import_stream("iso", stream, 80 * MIB)
        assert caught.value.hint
        assert everything_in(small_filesystem / "pool") == []
        assert pool.space().free_bytes > 60 * MIB

    def test_clones_and_snapshots_in_a_full_pool_leave_nothing(self, small_filesystem: Path) -> None:
        pool = DirectoryPool("vms", small_filesystem / "pool")
        fill(pool, "golden")
        pool.create_snapshot("golden", "base")
        pool.protect_snapshot("golden", "base")
        (small_filesystem / "filler").write_bytes(b"x" * (pool.space().free_bytes - 4096))
        before = everything_in(small_filesystem / "pool")
        for refused in (
            lambda: pool.clone_snapshot("golden", "base", "web1_sda"),
            lambda: pool.clone_volume("golden", "web1_sda"),
            lambda: pool.create_snapshot("golden", "more"),
            lambda: pool.rollback_snapshot("golden", "base"),
            lambda: pool.flatten_volume("golden"),
        ):
            with pytest.raises(NoSpace):
                refused()
            assert everything_in(small_filesystem / "pool") == before
        (small_filesystem / "filler").unlink()
        assert qemu_content(pool.disk_source("golden")).startswith(TEXT)

    @pytest.mark.parametrize("volume_format", ["raw", "qcow2"])
    def test_a_device_on_a_full_pool_fails_loudly(self, small_filesystem: Path, volume_format: str) -> None:
        pool = DirectoryPool("vms", small_filesystem / "pool", volume_format=volume_format)
        pool.create_volume("web1_sda", 128 * MIB)
        with pytest.raises((NoSpace, EnvironmentFault, OSError)), pool.open_device("web1_sda") as device:
            for number in range(100):
                os.pwrite(device.fd, os.urandom(MIB), number * MIB)
                os.fsync(device.fd)
        pool.delete_volume("web1_sda")
        assert everything_in(small_filesystem / "pool") == []

    def test_space_counts_what_is_there(self, small_filesystem: Path) -> None:
        pool = DirectoryPool("vms", small_filesystem / "pool")
        before = pool.space()
        pool.create_volume("sparse", 1024 * MIB)
        fill(pool, "full", os.urandom(8 * MIB), 8 * MIB)
        after = pool.space()
        assert before.total_bytes == after.total_bytes == 64 * MIB
        assert 8 * MIB <= before.free_bytes - after.free_bytes < 9 * MIB


def in_private_mounts(script: str) -> None:
    subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", script], check=True)


def storage_daemons(path: Path) -> list[int]:
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (words := command_line(process))
        and words[0] == b"qemu-storage-daemon"
        and os.fsencode(path) in b" ".join(words)
    ]


def command_line(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def fork(function: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)
    return child
