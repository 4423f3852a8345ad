"""What every storage driver promises. No root is needed for the directory driver."""

import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from storage_helpers import MIB, SIZE, TEXT, fill

from pvccommon.errors import Busy, Exists, NotFound, PvcError, WrongInput, WrongState
from pvccommon.storage import PoolSpace, StoragePool

HOSTILE_NAMES = (
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "-x",
    "--help",
    ".hidden",
    "a@b",
    "a b",
    "a\n",
    "a\0b",
    "ü",
    "x" * 129,
)

Content = Callable[[str], bytes]


def protected(pool: StoragePool, volume: str = "golden", snapshot: str = "base") -> None:
    fill(pool, volume)
    pool.create_snapshot(volume, snapshot)
    pool.protect_snapshot(volume, snapshot)


class TestVolumes:
    def test_a_new_volume_has_its_size_and_takes_next_to_nothing(self, pool: StoragePool) -> None:
        volume = pool.create_volume("web1_sda", 10 * 1024 * MIB)
        assert (volume.pool, volume.name, volume.parent) == ("vms", "web1_sda", None)
        assert volume.size_bytes == 10 * 1024 * MIB
        assert volume.used_bytes < MIB
        assert pool.stat_volume("web1_sda") == volume

    def test_a_new_volume_reads_as_zeros(self, pool: StoragePool, content: Content) -> None:
        pool.create_volume("web1_sda", SIZE)
        assert content("web1_sda") == bytes(SIZE)

    def test_sizes_are_rounded_up_to_sectors(self, pool: StoragePool) -> None:
        assert pool.create_volume("odd", 1_000_001).size_bytes == 1_000_448

    @pytest.mark.parametrize("size_bytes", [0, -1, 64 * 1024**3 + 1, 2**70])
    def test_impossible_sizes_are_refused(self, pool: StoragePool, size_bytes: int) -> None:
        with pytest.raises(WrongInput):
            pool.create_volume("web1_sda", size_bytes)
        assert pool.list_volumes() == []

    def test_a_taken_name_is_refused(self, pool: StoragePool) -> None:
        first = pool.create_volume("web1_sda", SIZE)
        with pytest.raises(Exists):
            pool.create_volume("web1_sda", 2 * SIZE)
        assert pool.list_volumes() == [first]

    def test_volumes_are_listed_by_name(self, pool: StoragePool) -> None:
        volumes = [pool.create_volume(name, SIZE) for name in ("b", "a", "c")]
        assert pool.list_volumes() == sorted(volumes, key=lambda volume: volume.name)

    def test_missing_is_told_from_found(self, pool: StoragePool) -> None:
        assert pool.volume_or_none("web1_sda") is None
        with pytest.raises(NotFound):
            pool.stat_volume("web1_sda")

    def test_delete_leaves_nothing(self, pool: StoragePool, under_test) -> None:
        pool.create_volume("web1_sda", SIZE)
        pool.delete_volume("web1_sda")
        assert pool.list_volumes() == []
        assert under_test.leftovers() == []

    def test_delete_can_be_repeated_when_asked(self, pool: StoragePool) -> None:
        with pytest.raises(NotFound):
            pool.delete_volume("web1_sda")
        pool.delete_volume("web1_sda", missing_ok=True)

    def test_rename_keeps_the_content(self, pool: StoragePool, content: Content) -> None:
        fill(pool, "old")
        assert pool.rename_volume("old", "new").name == "new"
        assert pool.volume_or_none("old") is None
        assert content("new").startswith(TEXT)

    def test_rename_refuses_taken_and_missing_names(self, pool: StoragePool) -> None:
        pool.create_volume("a", SIZE)
        pool.create_volume("b", SIZE)
        with pytest.raises(Exists):
            pool.rename_volume("a", "b")
        with pytest.raises(NotFound):
            pool.rename_volume("c", "d")

    def test_resize_grows_with_zeros(self, pool: StoragePool, content: Content) -> None:
        fill(pool, "web1_sda")
        assert pool.resize_volume("web1_sda", 2 * SIZE).size_bytes == 2 * SIZE
        assert content("web1_sda") == TEXT.ljust(2 * SIZE, b"\0")

    def test_resize_never_cuts(self, pool: StoragePool) -> None:
        pool.create_volume("web1_sda", SIZE)
        for size_bytes in (SIZE - 512, 0, 65 * 1024**3):
            with pytest.raises(WrongInput):
                pool.resize_volume("web1_sda", size_bytes)
        assert pool.stat_volume("web1_sda").size_bytes == SIZE

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_hostile_names_are_refused_everywhere(self, pool: StoragePool, name: str) -> None:
        protected(pool)
        calls: list[Callable[[], object]] = [
            lambda: pool.create_volume(name, SIZE),
            lambda: pool.clone_volume("golden", name),
            lambda: pool.clone_volume(name, "new"),
            lambda: pool.delete_volume(name),
            lambda: pool.delete_volume(name, missing_ok=True),
            lambda: pool.rename_volume("golden", name),
            lambda: pool.rename_volume(name, "new"),
            lambda: pool.resize_volume(name, SIZE),
            lambda: pool.flatten_volume(name),
            lambda: pool.stat_volume(name),
            lambda: pool.volume_or_none(name),
            lambda: pool.create_snapshot("golden", name),
            lambda: pool.create_snapshot(name, "base"),
            lambda: pool.list_snapshots(name),
            lambda: pool.delete_snapshot("golden", name),
            lambda: pool.delete_snapshot("golden", name, missing_ok=True),
            lambda: pool.delete_snapshot(name, "base"),
            lambda: pool.rename_snapshot("golden", "base", name),
            lambda: pool.rename_snapshot("golden", name, "new"),
            lambda: pool.protect_snapshot("golden", name),
            lambda: pool.unprotect_snapshot("golden", name),
            lambda: pool.clone_snapshot("golden", "base", name),
            lambda: pool.clone_snapshot("golden", name, "new"),
            lambda: pool.clone_snapshot(name, "base", "new"),
            lambda: pool.rollback_snapshot("golden", name),
            lambda: pool.open_device(name).__enter__(),
            lambda: pool.disk_source(name),
            lambda: pool.import_stream(name, io.BytesIO(), SIZE),
            lambda: pool.write_stream(name, io.BytesIO(b"x"), 1),
            lambda: pool.export_stream(name),
        ]
        for call in calls:
            with pytest.raises(WrongInput):
                call()
        assert [volume.name for volume in pool.list_volumes()] == ["golden"]

    def test_every_operation_on_a_missing_volume_says_so(self, pool: StoragePool) -> None:
        calls: list[Callable[[], object]] = [
            lambda: pool.clone_volume("no", "new"),
            lambda: pool.delete_volume("no"),
            lambda: pool.rename_volume("no", "new"),
            lambda: pool.resize_volume("no", SIZE),
            lambda: pool.flatten_volume("no"),
            lambda: pool.create_snapshot("no", "base"),
            lambda: pool.list_snapshots("no"),
            lambda: pool.delete_snapshot("no", "base"),
            lambda: pool.rename_snapshot("no", "base", "new"),
            lambda: pool.protect_snapshot("no", "base"),
            lambda: pool.unprotect_snapshot("no", "base"),
            lambda: pool.clone_snapshot("no", "base", "new"),
            lambda: pool.rollback_snapshot("no", "base"),
            lambda: pool.open_device("no").__enter__(),
            lambda: pool.disk_source("no"),
            lambda: pool.export_stream("no"),
        ]
        for call in calls:
            with pytest.raises(NotFound, match="vms/no"):
                call()


class TestSnapshots:
    def test_a_snapshot_keeps_what_was(self, pool: StoragePool, content: Content) -> None:
        fill(pool, "web1_sda")
        snapshot = pool.create_snapshot("web1_sda", "before")
        assert (snapshot.full_name, snapshot.size_bytes, snapshot.protected) == (
            "web1_sda@before",
            SIZE,
            False,
        )
        pool.resize_volume("web1_sda", 2 * SIZE)
        assert pool.rollback_snapshot("web1_sda", "before").size_bytes == SIZE
        assert content("web1_sda") == TEXT.ljust(SIZE, b"\0")

    def test_a_volume_is_not_the_child_of_its_own_snapshot(self, pool: StoragePool) -> None:
        fill(pool, "web1_sda")
        assert pool.create_snapshot("web1_sda", "before").children == ()
        assert pool.stat_volume("web1_sda").parent is None

    def test_snapshots_are_listed_oldest_first(self, pool: StoragePool) -> None:
        fill(pool, "web1_sda")
        names = ("z", "a", "m")
        for name in names:
            pool.create_snapshot("web1_sda", name)
        assert tuple(snapshot.name for snapshot in pool.list_snapshots("web1_sda")) == names

    def test_a_taken_snapshot_name_is_refused(self, pool: StoragePool) -> None:
        protected(pool)
        pool.create_snapshot("golden", "plain")
        for taken in ("base", "plain"):
            with pytest.raises(Exists):
                pool.create_snapshot("golden", taken)
            with pytest.raises(Exists):
                pool.rename_snapshot("golden", "base", taken)

    def test_snapshots_follow_a_rename(self, pool: StoragePool) -> None:
        protected(pool)
        pool.rename_snapshot("golden", "base", "v1")
        pool.rename_volume("golden", "silver")
        assert [(s.full_name, s.protected) for s in pool.list_snapshots("silver")] == [("silver@v1", True)]

    def test_a_snapshot_can_be_deleted_and_the_volume_stays_whole(
        self, pool: StoragePool, content: Content
    ) -> None:
        fill(pool, "web1_sda")
        pool.create_snapshot("web1_sda", "before")
        pool.delete_snapshot("web1_sda", "before")
        assert pool.list_snapshots("web1_sda") == []
        assert content("web1_sda").startswith(TEXT)
        with pytest.raises(NotFound):
            pool.delete_snapshot("web1_sda", "before")
        pool.delete_snapshot("web1_sda", "before", missing_ok=True)

    def test_protection_can_be_repeated_and_undone(self, pool: StoragePool) -> None:
        protected(pool)
        pool.protect_snapshot("golden", "base")
        for refused in (lambda: pool.delete_snapshot("golden", "base"), lambda: pool.delete_volume("golden")):
            with pytest.raises(WrongState, match="protected"):
                refused()
        pool.unprotect_snapshot("golden", "base")
        pool.unprotect_snapshot("golden", "base")
        pool.delete_snapshot("golden", "base")

    def test_deleting_a_volume_takes_its_snapshots(self, pool: StoragePool, under_test) -> None:
        fill(pool, "web1_sda")
        for name in ("a", "b", "c"):
            pool.create_snapshot("web1_sda", name)
        pool.delete_volume("web1_sda")
        assert under_test.leftovers() == []


class TestClones:
    def test_a_clone_reads_like_its_snapshot_and_shares_it(self, pool: StoragePool, content: Content) -> None:
        protected(pool)
        clone = pool.clone_snapshot("golden", "base", "web1_sda")
        assert (clone.parent, clone.size_bytes) == ("golden@base", SIZE)
        assert content("web1_sda") == TEXT.ljust(SIZE, b"\0")
        assert pool.stat_snapshot("golden", "base").children == ("web1_sda",)

    def test_no_data_are_copied(self, pool: StoragePool) -> None:
        size = 64 * MIB
        pool.import_stream("golden", io.BytesIO(os.urandom(size)), size)
        pool.create_snapshot("golden", "base")
        pool.protect_snapshot("golden", "base")
        assert pool.clone_snapshot("golden", "base", "web1_sda").used_bytes < MIB
        assert pool.clone_volume("golden", "web2_sda").used_bytes < MIB

    def test_a_clone_can_be_larger_but_not_smaller(self, pool: StoragePool, content: Content) -> None:
        protected(pool)
        assert pool.clone_snapshot("golden", "base", "web1_sda", size_bytes=2 * SIZE).size_bytes == 2 * SIZE
        assert pool.clone_volume("golden", "web2_sda", size_bytes=2 * SIZE).size_bytes == 2 * SIZE
        assert content("web1_sda") == content("web2_sda") == TEXT.ljust(2 * SIZE, b"\0")
        with pytest.raises(WrongInput):
            pool.clone_snapshot("golden", "base", "web3_sda", size_bytes=SIZE - 512)
        with pytest.raises(WrongInput):
            pool.clone_volume("golden", "web3_sda", size_bytes=SIZE - 512)

    def test_only_protected_snapshots_are_cloned(self, pool: StoragePool) -> None:
        fill(pool, "golden")
        pool.create_snapshot("golden", "base")
        with pytest.raises(WrongState, match="protect"):
            pool.clone_snapshot("golden", "base", "web1_sda")

    def test_what_has_clones_is_kept_and_the_error_lists_them(self, pool: StoragePool) -> None:
        protected(pool)
        for name in ("web1_sda", "web2_sda"):
            pool.clone_snapshot("golden", "base", name)
        for refused in (
            lambda: pool.unprotect_snapshot("golden", "base"),
            lambda: pool.delete_volume("golden"),
        ):
            with pytest.raises(WrongState, match="web1_sda, web2_sda"):
                refused()

    def test_a_flattened_clone_stands_alone(self, pool: StoragePool, content: Content) -> None:
        protected(pool)
        pool.clone_snapshot("golden", "base", "web1_sda", size_bytes=2 * SIZE)
        for _ in range(2):
            assert pool.flatten_volume("web1_sda").parent is None
        pool.unprotect_snapshot("golden", "base")
        pool.delete_volume("golden")
        assert content("web1_sda") == TEXT.ljust(2 * SIZE, b"\0")

    def test_deleting_the_last_clone_frees_the_snapshot(self, pool: StoragePool, under_test) -> None:
        protected(pool)
        pool.clone_snapshot("golden", "base", "web1_sda")
        pool.delete_volume("web1_sda")
        pool.unprotect_snapshot("golden", "base")
        pool.delete_volume("golden")
        assert under_test.leftovers() == []

    def test_a_clone_of_a_volume_is_independent_of_it(
        self, pool: StoragePool, content: Content, under_test
    ) -> None:
        fill(pool, "golden")
        pool.clone_volume("golden", "web1_sda")
        pool.clone_volume("web1_sda", "web2_sda")
        pool.delete_volume("golden")
        pool.delete_volume("web1_sda")
        assert content("web2_sda") == TEXT.ljust(SIZE, b"\0")
        pool.delete_volume("web2_sda")
        assert under_test.leftovers() == []

    def test_a_clone_refuses_a_taken_name(self, pool: StoragePool) -> None:
        protected(pool)
        taken = pool.create_volume("web1_sda", SIZE)
        with pytest.raises(Exists):
            pool.clone_snapshot("golden", "base", "web1_sda")
        with pytest.raises(Exists):
            pool.clone_volume("golden", "web1_sda")
        assert pool.stat_volume("web1_sda") == taken

    def test_clones_of_clones_name_the_nearest_snapshot(self, pool: StoragePool) -> None:
        protected(pool)
        pool.clone_snapshot("golden", "base", "middle")
        pool.create_snapshot("middle", "base")
        pool.protect_snapshot("middle", "base")
        assert pool.clone_snapshot("middle", "base", "web1_sda").parent == "middle@base"
        assert pool.stat_snapshot("golden", "base").children == ("middle",)


class TestStreams:
    def test_a_volume_is_written_in_pieces_of_any_order(self, pool: StoragePool) -> None:
        with pool.write_volume("new", SIZE) as writer:
            writer.write(SIZE - 512, b"z" * 512)
            writer.write(4096, b"a" * 4096)
            assert pool.volume_or_none("new") is None, "it appears when it is whole"
        content = b"".join(pool.export_stream("new"))
        assert content == bytes(4096) + b"a" * 4096 + bytes(SIZE - 8192 - 512) + b"z" * 512
        with pytest.raises(Exists), pool.write_volume("new", SIZE):
            pass

    def test_a_piece_outside_of_the_volume_ends_the_writing(self, pool: StoragePool) -> None:
        for offset in (SIZE, SIZE - 511, -1):
            with pytest.raises(WrongInput), pool.write_volume("new", SIZE) as writer:
                writer.write(offset, bytes(512))
        with pytest.raises(RuntimeError), pool.write_volume("new", SIZE):
            raise RuntimeError
        assert pool.list_volumes() == []

    def test_import_keeps_every_byte_and_no_zeros(self, pool: StoragePool, content: Content) -> None:
        size = 16 * MIB
        data = (bytes(3 * MIB) + os.urandom(4096) + bytes(4096) + b"x").ljust(size, b"\0")
        volume = pool.import_stream("iso", io.BytesIO(data), size)
        assert volume.size_bytes == size
        assert volume.used_bytes <= 4 * MIB  # one object, for drivers that count those
        assert content("iso") == data

    def test_import_reads_short_pieces(self, pool: StoragePool, content: Content) -> None:
        class Dribble(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                return super().read(min(size or 0, 1000))

        pool.import_stream("iso", Dribble(TEXT), len(TEXT))
        assert content("iso") == TEXT

    @pytest.mark.parametrize("announced", [len(TEXT) - 1, len(TEXT) + 1])
    def test_a_stream_of_another_length_leaves_nothing(
        self, pool: StoragePool, under_test, announced: int
    ) -> None:
        with pytest.raises(WrongInput, match="stream"):
            pool.import_stream("iso", io.BytesIO(TEXT), announced)
        assert pool.list_volumes() == []
        assert under_test.leftovers() == []

    def test_a_stream_that_fails_leaves_nothing(self, pool: StoragePool, under_test) -> None:
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                raise ConnectionResetError("the client went away")

        with pytest.raises((ConnectionResetError, PvcError)):
            pool.import_stream("iso", Broken(), SIZE)
        assert under_test.leftovers() == []


class TestManyAtOnce:
    def test_one_of_many_gets_the_name(self, pool: StoragePool, under_test) -> None:
        def create(number: int) -> bool:
            try:
                (pool, under_test.other)[number % 2].create_volume("web1_sda", SIZE)
            except Exists:
                return False
            return True

        with ThreadPoolExecutor(8) as executor:
            assert sum(executor.map(create, range(16))) == 1
        pool.delete_volume("web1_sda")
        assert under_test.leftovers() == []

    def test_one_of_many_gets_the_name_by_renaming(self, pool: StoragePool, under_test) -> None:
        sizes = {f"web{number}_sda": (number + 1) * SIZE for number in range(4)}
        for name, size_bytes in sizes.items():
            pool.create_volume(name, size_bytes)

        def rename(name: str) -> bool:
            try:
                renamed = (pool, under_test.other)[sizes[name] // SIZE % 2].rename_volume(name, "new_sda")
            except (Exists, Busy):
                return False
            return renamed.size_bytes == sizes[name]

        with ThreadPoolExecutor(4) as executor:
            renamed = list(executor.map(rename, sizes))
        assert sum(renamed) == 1
        winner = list(sizes)[renamed.index(True)]
        left = {volume.name: volume.size_bytes for volume in pool.list_volumes()}
        assert left == {name: size for name, size in sizes.items() if name != winner} | {
            "new_sda": sizes[winner]
        }

    def test_one_of_many_makes_the_snapshot(self, pool: StoragePool, under_test) -> None:
        fill(pool, "golden")

        def create(number: int) -> bool:
            try:
                (pool, under_test.other)[number % 2].create_snapshot("golden", "base")
            except (Exists, Busy):
                return False
            return True

        with ThreadPoolExecutor(6) as executor:
            assert sum(executor.map(create, range(12))) == 1

    def test_clones_made_while_others_go(self, pool: StoragePool, under_test, content: Content) -> None:
        protected(pool)

        def work(number: int) -> None:
            mine = (pool, under_test.other)[number % 2]
            for turn in range(4):
                mine.clone_snapshot("golden", "base", f"web{number}_{turn}")
                if turn % 2:
                    mine.delete_volume(f"web{number}_{turn}")

        with ThreadPoolExecutor(4) as executor:
            list(executor.map(work, range(4)))
        names = {f"web{number}_{turn}" for number in range(4) for turn in (0, 2)}
        assert set(pool.stat_snapshot("golden", "base").children) == names
        assert all(content(name).startswith(TEXT) for name in names)


def test_space_adds_up(pool: StoragePool) -> None:
    space = pool.space()
    assert isinstance(space, PoolSpace)
    assert 0 < space.free_bytes <= space.total_bytes
    assert space.used_bytes + space.free_bytes <= space.total_bytes


def test_sweep_of_a_healthy_pool_finds_nothing(pool: StoragePool, content: Content) -> None:
    protected(pool)
    pool.clone_snapshot("golden", "base", "web1_sda")
    assert pool.sweep() == []
    assert content("web1_sda").startswith(TEXT)
    assert pool.leftovers() == [] and pool.left_mappings() == []
    for kind, name in (("volume", "web1_sda"), ("snapshot", "golden@base"), ("mapping", "/dev/null")):
        with pytest.raises(NotFound):
            pool.remove_leftover(kind, name)


def test_who_reads_a_volume_has_it_open(pool: StoragePool) -> None:
    fill(pool, "web1_sda")
    assert not pool.is_open("web1_sda")
    pieces = pool.export_stream("web1_sda")
    next(pieces)
    assert pool.is_open("web1_sda")
    for _ in pieces:
        pass
    assert not pool.is_open("web1_sda")
    with pytest.raises(NotFound):
        pool.is_open("web2_sda")


def test_a_volume_knows_when_it_was_made(pool: StoragePool) -> None:
    before = time.time()
    made = pool.create_volume("web1_sda", SIZE)
    assert before - 5 < made.changed < time.time() + 5


class TestOverwriting:
    """`write_stream`: in place."""

    OLD = b"old".ljust(4096, b"o") * 512  # 2 MiB
    NEW = b"new".ljust(5000, b"n") + bytes(300_000) + b"end".ljust(700, b"e")

    def old(self, pool: StoragePool) -> None:
        fill(pool, "web1_sda", self.OLD, len(self.OLD))

    def overwrite(self, pool: StoragePool, data: bytes = NEW) -> None:
        pool.write_stream("web1_sda", io.BytesIO(data), len(data))

    def test_the_rest_reads_as_zeros(self, pool: StoragePool, content: Content) -> None:
        self.old(pool)
        self.overwrite(pool)
        assert content("web1_sda") == self.NEW.ljust(len(self.OLD), b"\0")
        assert pool.stat_volume("web1_sda").size_bytes == len(self.OLD)

    def test_zeros_give_their_space_back(self, pool: StoragePool, content: Content) -> None:
        fill(pool, "web1_sda", b"x" * 24 * MIB, 24 * MIB)
        before = pool.stat_volume("web1_sda").used_bytes
        self.overwrite(pool, bytes(16 * MIB) + b"end")
        assert pool.stat_volume("web1_sda").used_bytes < before / 2
        assert content("web1_sda") == (bytes(16 * MIB) + b"end").ljust(24 * MIB, b"\0")

    def test_snapshots_and_clones_keep_what_they_have(self, pool: StoragePool, content: Content) -> None:
        self.old(pool)
        pool.create_snapshot("web1_sda", "base")
        pool.protect_snapshot("web1_sda", "base")
        pool.clone_snapshot("web1_sda", "base", "clone")
        self.overwrite(pool)
        assert content("web1_sda") == self.NEW.ljust(len(self.OLD), b"\0")
        assert content("clone") == self.OLD
        pool.write_stream("clone", io.BytesIO(b"c"), 1)
        assert content("clone") == b"c".ljust(len(self.OLD), b"\0")
        pool.rollback_snapshot("web1_sda", "base")
        assert content("web1_sda") == self.OLD

    @pytest.mark.parametrize("size_bytes", [0, 2 * MIB + 1])
    def test_what_does_not_fit_changes_nothing(
        self, pool: StoragePool, content: Content, size_bytes: int
    ) -> None:
        self.old(pool)
        with pytest.raises(WrongInput):
            pool.write_stream("web1_sda", io.BytesIO(b"x" * size_bytes), size_bytes)
        assert content("web1_sda") == self.OLD

    def test_streams_of_another_length(self, pool: StoragePool) -> None:
        self.old(pool)
        for size_bytes in (10, 12):
            with pytest.raises(WrongInput):
                pool.write_stream("web1_sda", io.BytesIO(b"eleven byte"), size_bytes)
        with pytest.raises(NotFound):
            pool.write_stream("web2_sda", io.BytesIO(b"x"), 1)

    def test_an_open_volume_is_busy(self, pool: StoragePool, content: Content) -> None:
        self.old(pool)
        pieces = pool.export_stream("web1_sda")
        next(pieces)
        with pytest.raises(Busy):
            self.overwrite(pool)
        pieces.close()
        assert content("web1_sda") == self.OLD
