"""Where the volumes of a directory pool are kept: links to images, and the locks on them.

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
from pvccommon.storage.faults import in_use, os_errors
from pvccommon.storage.image_lock import lock_file
from pvccommon.storage.image_store import DIRECTORY_MODE, Image, ImageStore, NewImage
from pvccommon.storage.pool import (
    Format,
    Snapshot,
    StoragePool,
    Volume,
    check_name,
    check_size,
    snapshot_name,
)

log = logging.getLogger(__name__)

MappingMode = Literal["auto", "loop", "export", "kernel"]

LOCK_TIMEOUT_S = 30.0
GIB = 1024**3


class DirectoryLayout(StoragePool):
    """The state of a pool on disk. Methods marked "locked" need the exclusive lock."""

    driver: ClassVar[str] = "directory"
    shared: ClassVar[bool] = False

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
        # Of the directory: it changes with the names in it, not with what is written to the volume.
        changed = (self._volumes / name).stat().st_mtime
        return Volume(self.name, name, size, used, self._parent(name, head, owners), head.format, changed)

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
        image = self._images.find(link)
        size, used = self._images.size_bytes(image), self._images.used_bytes(image)
        protected = link.parent.name == "protected"
        clones = tuple(children.get(link.name, ()))
        return Snapshot(self.name, volume, link.name, size, link.lstat().st_mtime, protected, clones, used)

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
        for name in self._names():
            removed += self._drop_temporary_links(name)
        return removed + [f"images/{name}" for name in self._images.collect(self._held_images())]

    def _held_images(self) -> list[Image]:
        """The images of all volumes and snapshots (locked)."""
        links = [self._volumes / name / "head" for name in self._names()]
        links += [link for name in self._names() for link in self._snapshot_links(name)]
        return [self._images.find(link) for link in links]

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
