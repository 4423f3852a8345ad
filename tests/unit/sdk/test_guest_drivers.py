"""Virtio drivers of a Linux system: built in, in the initial file system, or nowhere."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from vmbuilder import guest_drivers
from vmbuilder.command import Completed
from vmbuilder.errors import CommandFailed
from vmbuilder.guest_drivers import Drivers, find_virtio
from vmbuilder.target import Target

ALL = "kernel/drivers/block/virtio_pci.ko\nkernel/virtio_scsi.ko\nkernel/net/virtio_net.ko\n"
NONE = "kernel/fs/ext4/ext4.ko\n"
LISTED = "usr/lib/modules/6.1/kernel/virtio-pci.ko.xz\n-rw-r--r-- 1 root root 9 lib/virtio_scsi.ko\n"


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A root; entering it is only pretended, and its programs are not run."""
    made = Target(tmp_path)
    monkeypatch.setattr("vmbuilder.chroot.entered", lambda root: nullcontext())
    monkeypatch.setattr("vmbuilder.chroot.system_mounts", lambda root: nullcontext())
    monkeypatch.setattr(guest_drivers, "Target", lambda path: made)
    monkeypatch.setattr(guest_drivers, "_MODULES", (str(tmp_path / "lib/modules"),))
    monkeypatch.setattr(made, "path", lambda name: tmp_path / name.removeprefix(str(tmp_path)).lstrip("/"))
    return made


def kernel(target: Target, version: str, builtin: str, modules: str = "") -> None:
    target.write(f"/lib/modules/{version}/modules.builtin", builtin)
    target.write(
        f"/lib/modules/{version}/modules.dep", "".join(f"{line}: x.ko\n" for line in modules.split())
    )


def lister(target: Target, monkeypatch: pytest.MonkeyPatch, output: str | None) -> None:
    def run(argv: Any, **_: Any) -> Completed:
        if output is None:
            raise CommandFailed(argv, "exited with 1", returncode=1)
        return Completed(tuple(argv), 0, output, "", 0.1)

    monkeypatch.setattr(guest_drivers, "run", run)
    target.write("/usr/bin/lsinitramfs", "")
    target.write("/boot/initrd.img-6.1", "")


def test_no_kernel_is_not_known(target: Target) -> None:
    assert find_virtio(target.root) == Drivers(None, None)


def test_built_in(target: Target) -> None:
    kernel(target, "6.1", ALL)
    assert find_virtio(target.root) == Drivers(True, True)


@pytest.mark.parametrize(("listed", "disk"), [(LISTED, True), ("lib/ext4.ko\n", False), (None, None)])
def test_initial_file_system(
    target: Target, monkeypatch: pytest.MonkeyPatch, listed: str | None, disk: bool | None
) -> None:
    kernel(target, "6.1", NONE, ALL)
    lister(target, monkeypatch, listed)
    assert find_virtio(target.root) == Drivers(disk, True)


def test_modules_alone_are_enough_for_a_card_only(target: Target) -> None:
    kernel(target, "6.1", NONE, ALL)
    assert find_virtio(target.root) == Drivers(None, True)


def test_one_kernel_without_them_is_enough_for_a_no(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(target, "5.10", ALL)
    kernel(target, "6.1", NONE, NONE)
    lister(target, monkeypatch, "")
    assert find_virtio(target.root) == Drivers(False, False)
