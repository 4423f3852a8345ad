"""The directory driver when a step fails, and when its process dies at a step."""

import errno
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import TEXT, everything_in, fill, qemu_content

from pvccommon.errors import NoSpace, NotFound
from pvccommon.storage import StoragePool, qemu_img
from pvccommon.storage.directory import DirectoryPool
from pvccommon.storage.image_store import NEW

SIZE = 64 * 1024
STEPS = ("mkdir", "chmod", "open", "ftruncate", "fsync", "symlink", "rename", "unlink")


def prepare(pool: StoragePool) -> None:
    fill(pool, "golden", size_bytes=SIZE)
    pool.create_snapshot("golden", "base")
    pool.protect_snapshot("golden", "base")
    pool.create_snapshot("golden", "more")
    fill(pool, "plain", size_bytes=SIZE)
    pool.clone_snapshot("golden", "base", "clone")


def copy_of(path: Path, target: Path) -> DirectoryPool:
    shutil.copytree(path, target, symlinks=True)
    return DirectoryPool("vms", target)


OPERATIONS: dict[str, Callable[[StoragePool], object]] = {
    "create_volume": lambda pool: pool.create_volume("new", SIZE),
    "import_stream": lambda pool: fill(pool, "new", size_bytes=SIZE),
    "clone_volume": lambda pool: pool.clone_volume("plain", "new"),
    "clone_snapshot": lambda pool: pool.clone_snapshot("golden", "base", "new"),
    "create_snapshot": lambda pool: pool.create_snapshot("plain", "new"),
    "rollback_snapshot": lambda pool: pool.rollback_snapshot("golden", "more"),
    "delete_snapshot": lambda pool: pool.delete_snapshot("golden", "more"),
    "rename_snapshot": lambda pool: pool.rename_snapshot("golden", "base", "new"),
    "unprotect_snapshot": lambda pool: pool.protect_snapshot("golden", "more"),
    "flatten_volume": lambda pool: pool.flatten_volume("clone"),
    "rename_volume": lambda pool: pool.rename_volume("clone", "new"),
    "delete_volume": lambda pool: pool.delete_volume("plain"),
    "delete_clone": lambda pool: pool.delete_volume("clone"),
}


@contextmanager
def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> Iterator[list[str]]:
    """Do something in place of the step of this number; yields the steps seen."""
    seen: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                action()
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        for name in ("create", "convert"):
            patch.setattr(qemu_img, name, wrap(f"qemu-img {name}", getattr(qemu_img, name)))
        yield seen


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def shape(pool: StoragePool) -> list[str]:
    """What an operator sees of a pool."""
    volumes = [f"{volume.name} {volume.size_bytes} {volume.parent}" for volume in pool.list_volumes()]
    names = [volume.split()[0] for volume in volumes]
    snapshots = [
        f"{s.full_name} {s.protected} {s.children}" for name in names for s in pool.list_snapshots(name)
    ]
    return volumes + snapshots


def assert_whole(pool: DirectoryPool) -> None:
    for volume in pool.list_volumes():
        expected = bytes(SIZE) if volume.name == "new" and volume.used_bytes == 0 else TEXT.ljust(SIZE, b"\0")
        assert qemu_content(pool.disk_source(volume.name)) == expected


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_step_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    prepare(DirectoryPool("vms", tmp_path / "before"))
    for number in range(1, 200):
        pool = copy_of(tmp_path / "before", path := tmp_path / str(number))
        before, files = shape(pool), everything_in(path)
        with at_step(monkeypatch, number, full) as seen:
            try:
                OPERATIONS[operation](pool)
            except NoSpace:
                failed = True
            else:
                failed = False
        assert_whole(pool)
        # Clearing away is not undone: a step of it that fails leaves garbage for the next sweep.
        if failed and shape(pool) == before:
            pool.sweep()
            assert everything_in(path) == files, seen
        if len(seen) < number:
            assert number > 1 and not failed
            return
    pytest.fail("the operation has no end")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_death_at_any_step_leaves_the_state_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    prepare(DirectoryPool("vms", tmp_path / "before"))
    after = copy_of(tmp_path / "before", tmp_path / "after")
    OPERATIONS[operation](after)
    for number in range(1, 200):
        pool = copy_of(tmp_path / "before", path := tmp_path / str(number))
        before = shape(pool)
        survived = run_in_child(partial(_operate, monkeypatch, number, operation, path))
        assert shape(pool) in (before, shape(after))
        pool.sweep()
        assert pool.sweep() == []
        assert not [name for name in everything_in(path) if "/." in name or NEW in name]
        assert shape(pool) in (before, shape(after))
        assert_whole(pool)
        if survived:
            assert number > 1
            return
    pytest.fail("the operation has no end")


def _operate(monkeypatch: pytest.MonkeyPatch, number: int, operation: str, path: Path) -> None:
    with at_step(monkeypatch, number, die):
        OPERATIONS[operation](DirectoryPool("vms", path))


def run_in_child(function: Callable[[], None]) -> bool:
    """Whether a forked child came to its end and was not killed; one that raised fails the test."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def test_sweep_spares_what_a_living_process_is_making(tmp_path: Path) -> None:
    pool, other = (DirectoryPool("vms", tmp_path / "pool") for _ in range(2))
    pool.sweep()
    with pool._images.new_raw(SIZE) as new:
        assert other.sweep() == []
        assert new.path.exists()
    assert everything_in(tmp_path / "pool") == []


def test_an_image_with_children_cannot_be_written_by_its_old_name(tmp_path: Path) -> None:
    pool = DirectoryPool("vms", tmp_path / "pool")
    fill(pool, "web1_sda", size_bytes=SIZE)
    before = Path(pool.disk_source("web1_sda").path)
    pool.create_snapshot("web1_sda", "s")
    assert before.stat().st_mode & 0o777 == 0o400
    after = Path(pool.disk_source("web1_sda").path)
    assert after != before
    assert after.stat().st_mode & 0o777 == 0o600


def test_other_users_can_reach_images_but_list_nothing(tmp_path: Path) -> None:
    pool = DirectoryPool("vms", tmp_path / "pool")
    pool.create_volume("web1_sda", SIZE)
    image = Path(pool.disk_source("web1_sda").path)
    for directory in (image.parent, image.parent.parent, image.parent.parent.parent):
        assert directory.stat().st_mode & 0o777 == 0o711
    assert image.stat().st_mode & 0o777 == 0o600


def test_the_names_in_a_header_are_not_believed(tmp_path: Path) -> None:
    """A domain that broke out of its QEMU could write any backing file into its image's header."""
    pool = DirectoryPool("vms", tmp_path / "pool")
    fill(pool, "golden", size_bytes=SIZE)
    pool.clone_volume("golden", "web1_sda")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(SIZE))
    image = Path(pool.disk_source("web1_sda").path)
    data = bytearray(image.read_bytes())
    offset, length = int.from_bytes(data[8:16]), int.from_bytes(data[16:20])
    evil = os.fsencode(secret)
    data[offset : offset + max(length, len(evil))] = evil.ljust(length, b"\0")
    data[16:20] = len(evil).to_bytes(4)
    image.write_bytes(data)
    assert b"secret" in qemu_content(pool.disk_source("web1_sda"))
    pool.flatten_volume("web1_sda")
    assert qemu_content(pool.disk_source("web1_sda")).startswith(TEXT)


def test_clones_of_an_untouched_volume_do_not_lengthen_the_chain(tmp_path: Path) -> None:
    pool = DirectoryPool("vms", tmp_path / "pool")
    fill(pool, "golden", size_bytes=SIZE)
    for number in range(5):
        pool.clone_volume("golden", f"web{number}")
    assert {len(pool.disk_source(f"web{number}").backing) for number in range(5)} == {1}
    assert len(pool.disk_source("golden").backing) == 1


def test_what_a_sweep_cannot_remove_is_left_for_an_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = DirectoryPool("vms", tmp_path / "pool")
    fill(pool, "plain", size_bytes=SIZE)
    garbage = tmp_path / "pool" / "images" / "0123"
    garbage.mkdir()
    with monkeypatch.context() as failing:
        failing.setattr(shutil, "rmtree", lambda *_, ignore_errors: None)
        (left,) = pool.leftovers()
        assert (left.kind, left.name) == ("volume", "images/0123")
    # It can be removed now, but a sweep is quicker.
    with pytest.raises(NotFound):
        pool.remove_leftover("volume", "images/0123")
    assert not garbage.exists()
    assert [volume.name for volume in pool.list_volumes()] == ["plain"]


def test_who_tidies_up_does_not_take_what_has_just_been_begun(tmp_path: Path) -> None:
    """Between the making of a temporary directory and its lock it looks like a dead maker's."""
    pool = DirectoryPool("vms", tmp_path)
    pool.create_volume("first", SIZE)
    stop = threading.Event()

    def tidy() -> None:
        while not stop.is_set():
            pool.sweep()

    tidier = threading.Thread(target=tidy)
    tidier.start()
    try:
        names = [f"web{number}" for number in range(150)]
        for name in names:
            pool.create_volume(name, SIZE)
    finally:
        stop.set()
        tidier.join()
    assert [volume.name for volume in pool.list_volumes()] == sorted(["first", *names])
