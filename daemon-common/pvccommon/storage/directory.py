"""The `directory` driver: volumes as files of one directory; directory_layout.py says which."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from pvccommon.errors import WrongInput, WrongState
from pvccommon.storage import qemu_img
from pvccommon.storage.directory_snapshots import DirectorySnapshots
from pvccommon.storage.discard import punch_hole, zero_export
from pvccommon.storage.export import open_export
from pvccommon.storage.faults import os_errors
from pvccommon.storage.image_lock import is_in_use, lock_file
from pvccommon.storage.image_store import Image
from pvccommon.storage.left_mappings import left_exports, left_loops, release_mapping
from pvccommon.storage.loop import loop_device
from pvccommon.storage.pool import (
    BlockDevice,
    ByteSource,
    DiskSource,
    Leftover,
    PoolSpace,
    Volume,
    VolumeWriter,
    check_fits,
    check_name,
    check_size,
)
from pvccommon.storage.sparse import FileWriter, data_runs, overwrite, read_pieces, write_all


class DirectoryPool(DirectorySnapshots):
    """Sparse raw files or qcow2 files; clones and what has snapshots are qcow2 overlays.

    Nothing is touched before the first use. Snapshots, clones of volumes, resizing and renaming need the
    volume closed (Busy otherwise).
    """

    # ---- volumes

    def create_volume(self, name: str, size_bytes: int) -> Volume:
        check_name(name)
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        with os_errors(f"create volume {self.describe(name)}"):
            self._refuse_taken(name)
            with self._images.new_empty(self._format, size) as new:
                return self._add_volume(name, new)

    def clone_volume(self, source: str, name: str, *, size_bytes: int | None = None) -> Volume:
        check_name(name)
        what = f"clone volume {self.describe(source)} as {self.describe(name)}"
        with os_errors(what):
            self._refuse_taken(name)
            head = self._head(source, "clone")
            size = self._clone_size(name, head, size_bytes)
            untouched = self._images.parent(head) if self._images.is_untouched(head) else None
            base = untouched or head
            with ExitStack() as stack:
                clone = stack.enter_context(self._images.new_overlay(base, size))
                if base is head:
                    overlay = stack.enter_context(
                        self._images.new_overlay(head, self._images.size_bytes(head))
                    )
                with self._changing(), self._closed(source, head, what), ExitStack() as moved:
                    self._refuse_taken(name)
                    if base is head:
                        moved.enter_context(self._head_moved(source, head, overlay))
                    return self._link_volume(name, self._images.commit(clone))

    def delete_volume(self, name: str, *, missing_ok: bool = False) -> None:
        what = f"delete volume {self.describe(name)}"
        with os_errors(what), self._changing():
            if missing_ok and not self._exists(name):
                return
            head = self._head(name, "delete")
            self._refuse_protected(name, what)
            alone = self._images.parent(head) is None and not self._snapshot_links(name)
            with self._closed(name, head, what):
                trash = self._temporary()
                os.rename(self._volumes / name, trash)
            shutil.rmtree(trash, ignore_errors=True)
            # The head belongs to this volume only; what it stood on needs a look at the whole pool.
            self._images.remove(head)
            if not alone:
                self._tidy()

    def rename_volume(self, name: str, new_name: str) -> Volume:
        check_name(new_name)
        what = f"rename volume {self.describe(name)} to {new_name}"
        with os_errors(what), self._changing():
            head = self._head(name, "rename")
            self._refuse_taken(new_name)
            with self._closed(name, head, what):
                os.rename(self._volumes / name, self._volumes / new_name)
            return self._volume(new_name)

    def resize_volume(self, name: str, size_bytes: int) -> Volume:
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        what = f"resize volume {self.describe(name)}"
        with os_errors(what), self._changing():
            head = self._head(name, "resize")
            old_size = self._images.size_bytes(head)
            if size < old_size:
                raise WrongInput(what, f"{size} bytes is less than its {old_size}; volumes are never cut")
            with self._closed(name, head, what) as fd:
                if head.format == "raw":
                    os.ftruncate(fd, size)
            if head.format == "qcow2" and size > old_size:
                qemu_img.resize(self._images.chain(head), size)
            return self._volume(name)

    def flatten_volume(self, name: str) -> Volume:
        what = f"flatten volume {self.describe(name)}"
        with os_errors(what):
            head = self._head(name, "flatten")
            if self._images.parent(head) is None:
                return self.stat_volume(name)
            with (
                self._closed(name, head, what),
                self._images.new_copy(head, head.format) as copy,
                self._changing(),
            ):
                self._refuse_changed(name, head, what)
                self._set_head(name, self._images.commit(copy))
                self._tidy()
                return self._volume(name)

    def list_volumes(self) -> list[Volume]:
        with os_errors(f"list volumes of pool {self.name}"), self._opening():
            owners = self._snapshot_owners()
            return [self._volume(name, owners) for name in self._names()]

    def volume_or_none(self, name: str) -> Volume | None:
        check_name(name)
        with os_errors(f"find volume {self.describe(name)}"), self._opening():
            return self._volume(name) if self._exists(name) else None

    # ---- the pool

    def space(self) -> PoolSpace:
        with os_errors(f"measure pool {self.name}"):
            self._ensure_layout()
            found = os.statvfs(self.path)
        unit = found.f_frsize
        return PoolSpace(
            found.f_blocks * unit, (found.f_blocks - found.f_bfree) * unit, found.f_bavail * unit
        )

    def sweep(self) -> list[str]:
        with os_errors(f"sweep pool {self.name}"), self._changing():
            return self._collect()

    def leftovers(self) -> list[Leftover]:
        with os_errors(f"sweep pool {self.name}"), self._changing():
            self._collect()
            hidden = [entry.name for entry in os.scandir(self._volumes) if entry.name.startswith(".")]
            names = [f"volumes/{name}" for name in hidden]
            names += [f"images/{name}" for name in self._images.garbage(self._held_images())]
        why = "files of no volume, which cannot be removed"
        return [Leftover("volume", name, why) for name in names]

    def left_mappings(self) -> list[Leftover]:
        return left_loops(self.name, self.path) + left_exports(
            lambda image: str(self.path / "images") in json.dumps(image)
        )

    def _remove_leftover(self, leftover: Leftover) -> None:
        what = f"remove {leftover.kind} {self.describe(leftover.name)}"
        if leftover.kind == "mapping":
            release_mapping(leftover.name, what)
            return
        with os_errors(what), self._changing():
            shutil.rmtree(self.path / leftover.name)

    # ---- content

    @contextmanager
    def open_device(self, name: str, *, read_only: bool = False) -> Iterator[BlockDevice]:
        label = self.describe(name)
        with self._open_content(name, f"open volume {label}", read_only=read_only) as (image, fd):
            direct_io = not self._is_exported(image)
            with loop_device(fd, label, read_only=read_only, direct_io=direct_io) as device:
                yield device

    def is_open(self, name: str) -> bool:
        with os_errors(f"look at volume {self.describe(name)}"), self._opening():
            return is_in_use(self._head(name, "find").path)

    def mapping(self) -> str:
        return "export" if self._format == "qcow2" or self._mapping == "export" else "loop"

    def disk_source(self, name: str, *, read_only: bool = False) -> DiskSource:
        with os_errors(f"find volume {self.describe(name)}"), self._opening():
            top, *below = self._images.chain(self._head(name, "find"))
        return DiskSource("file", top.path, top.format, tuple(below))

    def import_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        what = f"import volume {self.describe(name)}"
        with self.write_volume(name, size_bytes) as writer:
            for offset, data in data_runs(stream, size_bytes, what):
                writer.write(offset, bytes(data))
        return self.stat_volume(name)

    @contextmanager
    def write_volume(self, name: str, size_bytes: int) -> Iterator[VolumeWriter]:
        check_name(name)
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        what = f"write volume {self.describe(name)}"
        with os_errors(what):
            self._refuse_taken(name)
            with self._images.new_written(size) as (new, fd):
                yield FileWriter(fd, size, what)
                os.fsync(fd)
                self._add_volume(name, new)

    def write_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        what = f"overwrite volume {self.describe(name)}"
        with self._open_content(name, what, read_only=False) as (image, fd), os_errors(what):
            volume_bytes = self._images.size_bytes(image)
            check_fits(what, size_bytes, volume_bytes)
            zero = zero_export if self._is_exported(image) else punch_hole
            overwrite(
                stream,
                size_bytes,
                volume_bytes,
                what,
                write=partial(write_all, fd),
                clear=partial(zero, fd),
            )
            os.fsync(fd)
        return self.stat_volume(name)

    def export_stream(self, name: str) -> Iterator[bytes]:
        with os_errors(f"find volume {self.describe(name)}"):
            self._head(name, "export")
        return self._pieces(name)

    def _pieces(self, name: str) -> Iterator[bytes]:
        what = f"export volume {self.describe(name)}"
        with self._open_content(name, what, read_only=True) as (image, fd), os_errors(what):
            yield from read_pieces(fd, self._images.size_bytes(image))

    @contextmanager
    def _open_content(self, name: str, what: str, *, read_only: bool) -> Iterator[tuple[Image, int]]:
        """The volume's image, locked, and a descriptor of a file with its raw content."""
        with ExitStack() as stack:
            with os_errors(what), self._opening():
                image = self._head(name, "open")
                chain = self._images.chain(image)
                fd = lock_file(image.path, what, read_only=read_only)
                stack.callback(os.close, fd)
            if not self._is_exported(image):
                yield image, fd
                return
            if self._mapping == "loop":
                hint = "set storage.mapping to auto in the configuration"
                raise WrongState(what, "a qcow2 volume needs an export", hint)
            node = qemu_img.chain(chain, writable=not read_only)
            node["file"]["locking"] = "off"  # the lock is ours, and the daemon keeps it
            yield image, stack.enter_context(open_export(node, what, read_only=read_only, locks=(fd,)))

    def _is_exported(self, image: Image) -> bool:
        return image.format != "raw" or self._mapping == "export"
