"""The `directory` driver: volumes as files of one directory.

    pool.lock                          held to change names (exclusive) or to open volumes (shared)
    volumes/<volume>/head              link to the image the volume writes to (see image_store.py)
    volumes/<volume>/snapshots/<name>  link to a frozen image
    volumes/<volume>/protected/<name>  the same, for a protected snapshot
    volumes/.<anything>                half made or half deleted
    images/                            see image_store.py

Each change becomes visible by one rename, so a crash at any moment leaves the state before or after it, and
at most garbage that `sweep` knows as such.
"""

import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from pvccommon.errors import Busy, Exists, PvcError, WrongInput, WrongState
from pvccommon.storage import qemu_img
from pvccommon.storage.export import open_export
from pvccommon.storage.faults import in_use, os_errors
from pvccommon.storage.image_lock import lock_file
from pvccommon.storage.image_store import DIRECTORY_MODE, Image, ImageStore, NewImage
from pvccommon.storage.loop import loop_device
from pvccommon.storage.pool import (
    BlockDevice,
    ByteSource,
    DiskSource,
    Format,
    PoolSpace,
    Snapshot,
    StoragePool,
    Volume,
    check_name,
    check_size,
    snapshot_name,
)
from pvccommon.storage.sparse import read_pieces

log = logging.getLogger(__name__)

MappingMode = Literal["auto", "loop", "export", "kernel"]

LOCK_TIMEOUT_S = 30.0
GIB = 1024**3


class DirectoryPool(StoragePool):
    """Sparse raw files or qcow2 files; clones and what has snapshots are qcow2 overlays.

    Nothing is touched before the first use. Snapshots, clones of volumes, resizing and renaming need the
    volume closed (Busy otherwise).
    """

    driver: ClassVar[str] = "directory"

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        volume_format: Format = "raw",
        max_volume_bytes: int = 16_384 * GIB,
        mapping: MappingMode = "auto",
    ) -> None:
        super().__init__(name)
        self.path = Path(os.path.abspath(path))
        self._format = volume_format
        self._max_volume_bytes = max_volume_bytes
        self._mapping = mapping
        self._volumes = self.path / "volumes"
        self._images = ImageStore(self.path / "images")

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

    # ---- snapshots

    def create_snapshot(self, volume: str, snapshot: str) -> Snapshot:
        check_name(snapshot, "snapshot")
        what = f"create snapshot {self._full(volume, snapshot)}"
        with os_errors(what):
            head = self._head(volume, "snapshot")
            with self._images.new_overlay(head, self._images.size_bytes(head)) as overlay:
                with self._changing(), self._closed(volume, head, what):
                    self._refuse_taken_snapshot(volume, snapshot)
                    directory = self._volumes / volume / "snapshots"
                    with self._head_moved(volume, head, overlay):
                        os.rename(self._new_link(directory, head), directory / snapshot)
                    return self._snapshot(volume, directory / snapshot, {})

    def list_snapshots(self, volume: str) -> list[Snapshot]:
        with os_errors(f"list snapshots of {self.describe(volume)}"), self._opening():
            self._head(volume, "list snapshots of")
            children = self._children(volume)
            found = [self._snapshot(volume, link, children) for link in self._snapshot_links(volume)]
        return sorted(found, key=lambda snapshot: (snapshot.created, snapshot.name))

    def delete_snapshot(self, volume: str, snapshot: str, *, missing_ok: bool = False) -> None:
        what = f"delete snapshot {self._full(volume, snapshot)}"
        with os_errors(what), self._changing():
            self._head(volume, "delete a snapshot of")
            link = self._snapshot_link_or_none(volume, snapshot)
            if link is None and missing_ok:
                return
            if link is None:
                raise self._no_snapshot("delete", volume, snapshot)
            if link.parent.name == "protected":
                raise WrongState(what, "it is protected", "unprotect it first")
            os.unlink(link)
            self._tidy()

    def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> Snapshot:
        check_name(new_name, "snapshot")
        with os_errors(f"rename snapshot {self._full(volume, snapshot)} to {new_name}"), self._changing():
            link = self._snapshot_link(volume, snapshot, "rename")
            self._refuse_taken_snapshot(volume, new_name)
            os.rename(link, link.with_name(new_name))
        return self.stat_snapshot(volume, new_name)

    def protect_snapshot(self, volume: str, snapshot: str) -> None:
        with os_errors(f"protect snapshot {self._full(volume, snapshot)}"), self._changing():
            link = self._snapshot_link(volume, snapshot, "protect")
            os.rename(link, self._volumes / volume / "protected" / snapshot)

    def unprotect_snapshot(self, volume: str, snapshot: str) -> None:
        what = f"unprotect snapshot {self._full(volume, snapshot)}"
        with os_errors(what), self._changing():
            link = self._snapshot_link(volume, snapshot, "unprotect")
            clones = self._children(volume).get(snapshot, [])
            if clones:
                raise WrongState(what, f"it has clones: {', '.join(clones)}", "delete or flatten them first")
            os.rename(link, self._volumes / volume / "snapshots" / snapshot)

    def clone_snapshot(
        self, volume: str, snapshot: str, name: str, *, size_bytes: int | None = None
    ) -> Volume:
        check_name(name)
        what = f"clone snapshot {self._full(volume, snapshot)} as {self.describe(name)}"
        with os_errors(what):
            self._refuse_taken(name)
            link = self._snapshot_link(volume, snapshot, "clone")
            if link.parent.name != "protected":
                raise WrongState(what, "the snapshot is not protected", "protect it first")
            base = self._images.find(link)
            with (
                self._images.new_overlay(base, self._clone_size(name, base, size_bytes)) as clone,
                self._changing(),
            ):
                self._refuse_taken(name)
                if not link.is_symlink() or self._images.find(link) != base:
                    raise Busy(what, "the snapshot was changed at the same time", "try again")
                return self._link_volume(name, self._images.commit(clone))

    def rollback_snapshot(self, volume: str, snapshot: str) -> Volume:
        what = f"roll back to snapshot {self._full(volume, snapshot)}"
        with os_errors(what):
            head = self._head(volume, "roll back")
            base = self._images.find(self._snapshot_link(volume, snapshot, "roll back to"))
            with self._images.new_overlay(base, self._images.size_bytes(base)) as overlay:
                with self._changing(), self._closed(volume, head, what):
                    self._snapshot_link(volume, snapshot, "roll back to")
                    self._set_head(volume, self._images.commit(overlay))
                    self._tidy()
                    return self._volume(volume)

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

    # ---- content

    @contextmanager
    def open_device(self, name: str, *, read_only: bool = False) -> Iterator[BlockDevice]:
        label = self.describe(name)
        with self._open_content(name, f"open volume {label}", read_only=read_only) as (image, fd):
            direct_io = not self._is_exported(image)
            with loop_device(fd, label, read_only=read_only, direct_io=direct_io) as device:
                yield device

    def mapping(self) -> str:
        return "export" if self._format == "qcow2" or self._mapping == "export" else "loop"

    def disk_source(self, name: str) -> DiskSource:
        with os_errors(f"find volume {self.describe(name)}"), self._opening():
            top, *below = self._images.chain(self._head(name, "find"))
        return DiskSource("file", top.path, top.format, tuple(below))

    def import_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        check_name(name)
        check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        what = f"import volume {self.describe(name)}"
        with os_errors(what):
            self._refuse_taken(name)
            with self._images.new_from_stream(stream, size_bytes, what) as new:
                return self._add_volume(name, new)

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

    # ---- links

    def _names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._volumes) if not entry.name.startswith("."))

    def _exists(self, name: str) -> bool:
        self._ensure_layout()
        return (self._volumes / check_name(name) / "head").is_symlink()

    def _head(self, name: str, verb: str) -> Image:
        """The image a volume writes to; raises NotFound."""
        if not self._exists(name):
            raise self._no_volume(verb, name)
        return self._images.find(self._volumes / name / "head")

    def _set_head(self, name: str, image: Image) -> None:
        directory = self._volumes / name
        os.rename(self._new_link(directory, image, "../.."), directory / "head")

    @contextmanager
    def _head_moved(self, name: str, head: Image, overlay: NewImage) -> Iterator[None]:
        """Let the volume write to an overlay of its image, which is frozen (locked); taken back on error.

        To be done before anything else stands on the image, so that a crash cannot leave that writable.
        """
        with ExitStack() as undo:
            self._set_head(name, self._images.commit(overlay))
            undo.callback(self._set_head, name, head)
            self._images.freeze(head)
            undo.callback(self._images.thaw, head)
            yield
            undo.pop_all()

    def _add_volume(self, name: str, new: NewImage) -> Volume:
        with self._changing():
            self._refuse_taken(name)
            return self._link_volume(name, self._images.commit(new))

    def _link_volume(self, name: str, image: Image) -> Volume:
        """Make the volume of a committed image (locked)."""
        directory = self._temporary()
        os.mkdir(directory, 0o700)
        os.mkdir(directory / "snapshots")
        os.mkdir(directory / "protected")
        os.rename(self._new_link(directory, image, "../.."), directory / "head")
        os.rename(directory, self._volumes / name)
        return self._volume(name)

    def _new_link(self, directory: Path, image: Image, up: str = "../../..") -> Path:
        link = directory / f".{secrets.token_hex(8)}"
        os.symlink(f"{up}/images/{image.id}/{image.path.name}", link)
        return link

    def _temporary(self) -> Path:
        return self._volumes / f".{secrets.token_hex(8)}"

    def _snapshot_links(self, volume: str) -> list[Path]:
        return [
            Path(entry.path)
            for state in ("snapshots", "protected")
            for entry in os.scandir(self._volumes / volume / state)
            if not entry.name.startswith(".")
        ]

    def _snapshot_link_or_none(self, volume: str, snapshot: str) -> Path | None:
        check_name(snapshot, "snapshot")
        links = [self._volumes / volume / state / snapshot for state in ("snapshots", "protected")]
        return next((link for link in links if link.is_symlink()), None)

    def _snapshot_link(self, volume: str, snapshot: str, verb: str) -> Path:
        self._head(volume, f"{verb} a snapshot of")
        link = self._snapshot_link_or_none(volume, snapshot)
        if link is None:
            raise self._no_snapshot(verb, volume, snapshot)
        return link

    # ---- what is known

    def _volume(self, name: str, owners: dict[str, str] | None = None) -> Volume:
        head = self._images.find(self._volumes / name / "head")
        size, used = self._images.size_bytes(head), self._images.used_bytes(head)
        return Volume(self.name, name, size, used, self._parent(name, head, owners), head.format)

    def _parent(self, name: str, head: Image, owners: dict[str, str] | None = None) -> str | None:
        """The nearest snapshot of another volume that an image stands on."""
        ancestors = list(self._images.ancestors(head))
        if not ancestors:
            return None
        names = self._snapshot_owners() if owners is None else owners
        below = (names.get(image.id) for image in ancestors)
        return next((full for full in below if full and not full.startswith(f"{name}@")), None)

    def _snapshot_owners(self) -> dict[str, str]:
        """Full names of snapshots by the id of their image."""
        return {
            self._images.find(link).id: snapshot_name(volume, link.name)
            for volume in self._names()
            for link in self._snapshot_links(volume)
        }

    def _children(self, volume: str) -> dict[str, list[str]]:
        """Names of clones by snapshot."""
        children: dict[str, list[str]] = {}
        owners = self._snapshot_owners()
        for name in self._names():
            parent = self._parent(name, self._images.find(self._volumes / name / "head"), owners)
            if parent and parent.startswith(f"{volume}@"):
                children.setdefault(parent.partition("@")[2], []).append(name)
        return children

    def _snapshot(self, volume: str, link: Path, children: dict[str, list[str]]) -> Snapshot:
        size = self._images.size_bytes(self._images.find(link))
        protected = link.parent.name == "protected"
        clones = tuple(children.get(link.name, ()))
        return Snapshot(self.name, volume, link.name, size, link.lstat().st_mtime, protected, clones)

    def _full(self, volume: str, snapshot: str) -> str:
        return snapshot_name(self.describe(volume), snapshot)

    # ---- refusals

    def _refuse_taken(self, name: str) -> None:
        if self._exists(name):
            raise Exists(
                f"create volume {self.describe(name)}", "there is one of this name", "choose another name"
            )

    def _refuse_taken_snapshot(self, volume: str, snapshot: str) -> None:
        if self._snapshot_link_or_none(volume, snapshot) is not None:
            raise Exists(f"create snapshot {self._full(volume, snapshot)}", "there is one of this name")

    def _refuse_protected(self, name: str, what: str) -> None:
        protected = sorted(
            link.name for link in self._snapshot_links(name) if link.parent.name == "protected"
        )
        if not protected:
            return
        clones = sorted(clone for found in self._children(name).values() for clone in found)
        why = f"its snapshot {', '.join(protected)} is protected"
        why += f" and has clones: {', '.join(clones)}" if clones else ""
        raise WrongState(what, why, "delete or flatten the clones, then unprotect the snapshot")

    def _refuse_changed(self, name: str, head: Image, what: str) -> None:
        if not self._exists(name) or self._images.find(self._volumes / name / "head") != head:
            raise Busy(what, "the volume was changed at the same time", "try again")

    def _clone_size(self, name: str, source: Image, size_bytes: int | None) -> int:
        old_size = self._images.size_bytes(source)
        if size_bytes is None:
            return old_size
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        if size < old_size:
            raise WrongInput(
                f"clone volume {self.describe(name)}", f"{size} bytes is less than the source's {old_size}"
            )
        return size

    # ---- locks

    @contextmanager
    def _closed(self, name: str, head: Image, what: str) -> Iterator[int]:
        """Hold the volume's image, unchanged, for ourselves; raises Busy when somebody uses it."""
        try:
            fd = lock_file(head.path, what)
        except FileNotFoundError as exc:
            raise in_use(what) from exc
        try:
            self._refuse_changed(name, head, what)
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The exclusive lock; what an error inside leaves is removed."""
        with self._locked(fcntl.LOCK_EX):
            try:
                yield
            except BaseException:
                self._tidy()
                raise

    def _opening(self) -> "_Lock":
        """The shared lock: nothing changes while a volume is found and opened."""
        return self._locked(fcntl.LOCK_SH)

    def _locked(self, mode: int) -> "_Lock":
        self._ensure_layout()
        return _Lock(self.path / "pool.lock", mode, f"use pool {self.name}")

    def _tidy(self) -> None:
        """Remove what belongs to no volume (locked); what cannot be removed now is left for the next time."""
        try:
            self._collect()
        except (OSError, PvcError) as exc:
            log.warning("storage pool not tidied: pool=%s reason=%s", self.name, exc)

    def _collect(self) -> list[str]:
        """Remove everything that belongs to no volume (locked); says what."""
        removed = []
        for entry in os.scandir(self._volumes):
            if entry.name.startswith("."):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(f"volumes/{entry.name}")
        links = [self._volumes / name / "head" for name in self._names()]
        for name in self._names():
            links += self._snapshot_links(name)
            removed += self._drop_temporary_links(name)
        return removed + [f"images/{name}" for name in self._images.collect(map(self._images.find, links))]

    def _drop_temporary_links(self, volume: str) -> list[str]:
        directory = self._volumes / volume
        stale = [*directory.glob(".*"), *directory.glob("*/.*")]
        for link in stale:
            os.unlink(link)
        return [str(link.relative_to(self.path)) for link in stale]

    def _ensure_layout(self) -> None:
        if self._images.root.is_dir():
            return
        with os_errors(f"prepare pool {self.name} at {self.path}"):
            for directory, mode in (
                (self.path, DIRECTORY_MODE),
                (self._volumes, 0o700),
                (self._images.root, DIRECTORY_MODE),
            ):
                if not directory.is_dir():
                    directory.mkdir(parents=directory is self.path, exist_ok=True)
                    directory.chmod(mode)


class _Lock:
    """flock(2) on a file, with a deadline; raises Busy at it."""

    def __init__(self, path: Path, mode: int, what: str) -> None:
        self._path = path
        self._mode = mode
        self._what = what
        self._fd = -1

    def __enter__(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, self._mode | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    os.close(fd)
                    raise Busy(
                        self._what, f"it stayed locked for {LOCK_TIMEOUT_S:g} s", f"see: fuser {self._path}"
                    ) from exc
                time.sleep(0.005)
            else:
                self._fd = fd
                return

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)
