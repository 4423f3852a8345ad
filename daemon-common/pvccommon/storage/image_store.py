"""The files behind the volumes of a directory pool.

    images/<id>/data.raw | data.qcow2    the content
    images/<id>/parent -> ../<id>        what a qcow2 file stands on; the file's own header is never believed
    images/.new-<id>/                    being made by a living process, which holds a lock on the directory

An image gets its lasting name when it is whole, by a rename under the pool's lock, and belongs to a volume or
snapshot before that lock is released. Whatever else is found under the lock is garbage. An image that others
stand on is frozen: its mode loses the write bits, so that a domain still defined with it fails to start
instead of destroying its children.
"""

import fcntl
import os
import secrets
import shutil
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pvccommon.errors import EnvironmentFault
from pvccommon.storage import qemu_img
from pvccommon.storage.pool import BackingFile, Format

DIRECTORY_MODE = 0o711  # libvirt's QEMU, another user, must reach its files without listing the others
FILE_MODE = 0o600
FROZEN_MODE = 0o400
NEW = ".new-"

# QEMU, docs/interop/qcow2.txt: magic, version, backing file (offset, length), cluster bits, size, encryption,
# L1 table (entries, offset)
QCOW2_HEADER = struct.Struct(">4sIQIIQIIQ")
QCOW2_MAGIC = b"QFI\xfb"
MAX_L1_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Image:
    """One image with its lasting name."""

    id: str
    path: Path
    format: Format

    @property
    def directory(self) -> Path:
        return self.path.parent


@dataclass(frozen=True)
class NewImage:
    """An image that is not whole yet, and goes with its context."""

    id: str
    directory: Path
    format: Format

    @property
    def path(self) -> Path:
        return self.directory / f"data.{self.format}"


class ImageStore:
    """The images directory of a pool. Methods marked "locked" need the pool's exclusive lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- making

    @contextmanager
    def new_raw(self, size_bytes: int) -> Iterator[NewImage]:
        """A sparse file of zeros."""
        with self._new("raw") as image:
            with _create_file(image.path) as fd:
                os.ftruncate(fd, size_bytes)
            yield image

    @contextmanager
    def new_written(self, size_bytes: int) -> Iterator[tuple[NewImage, int]]:
        """A sparse file of zeros, open for its content; the caller brings it to stable storage."""
        with self._new("raw") as image, _create_file(image.path) as fd:
            os.ftruncate(fd, size_bytes)
            yield image, fd

    @contextmanager
    def new_empty(self, image_format: Format, size_bytes: int) -> Iterator[NewImage]:
        """An image of zeros in the given format."""
        if image_format == "raw":
            with self.new_raw(size_bytes) as image:
                yield image
            return
        with self._new("qcow2") as image:
            with _create_file(image.path):
                qemu_img.create(str(image.path), "qcow2", size_bytes)
            yield image

    @contextmanager
    def new_overlay(self, parent: Image, size_bytes: int) -> Iterator[NewImage]:
        """A qcow2 file that stands on another image, on stable storage: content depends on it."""
        with self._new("qcow2") as image:
            with _create_file(image.path) as fd:
                below = BackingFile(f"../{parent.id}/{parent.path.name}", parent.format)
                qemu_img.create(str(image.path), "qcow2", size_bytes, backing=below)
                os.symlink(f"../{parent.id}", image.directory / "parent")
                os.fsync(fd)
            yield image

    @contextmanager
    def new_copy(self, source: Image, image_format: Format) -> Iterator[NewImage]:
        """A copy that stands alone."""
        with self._new(image_format) as image:
            with _create_file(image.path) as fd:
                qemu_img.convert(self.chain(source), str(image.path), image_format)
                os.fsync(fd)
            yield image

    def commit(self, new: NewImage) -> Image:
        """Give a whole image its lasting name (locked)."""
        directory = self.root / new.id
        os.rename(new.directory, directory)
        return Image(new.id, directory / new.path.name, new.format)

    def freeze(self, image: Image) -> None:
        """Let nobody write to it any more (locked). Safe to repeat."""
        os.chmod(image.path, FROZEN_MODE)

    def thaw(self, image: Image) -> None:
        """Undo `freeze` (locked)."""
        os.chmod(image.path, FILE_MODE)

    @contextmanager
    def _new(self, image_format: Format) -> Iterator[NewImage]:
        with ExitStack() as undo:
            image_id, directory = self._make_directory(undo)
            yield NewImage(image_id, directory, image_format)

    def _make_directory(self, undo: ExitStack) -> tuple[str, Path]:
        """A locked directory. Who tidies up before it is locked takes it for a dead maker's: then another."""
        while True:
            image_id = secrets.token_hex(8)
            directory = self.root / f"{NEW}{image_id}"
            os.mkdir(directory)
            with ExitStack() as stack:
                stack.callback(shutil.rmtree, directory, ignore_errors=True)  # does nothing after `commit`
                with suppress(FileNotFoundError):
                    os.chmod(directory, DIRECTORY_MODE)
                    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    stack.callback(os.close, fd)
                    fcntl.flock(fd, fcntl.LOCK_EX)
                    os.stat(directory)
                    undo.push(stack.pop_all())
                    return image_id, directory

    # ---- looking

    def find(self, link: Path) -> Image:
        """The image a volume's or snapshot's link leads to."""
        path = Path(os.readlink(link))
        return self.get(path.parent.name, path.name)

    def get(self, image_id: str, file_name: str) -> Image:
        return Image(
            image_id, self.root / image_id / file_name, "qcow2" if file_name.endswith(".qcow2") else "raw"
        )

    def parent(self, image: Image) -> Image | None:
        """What the image stands on."""
        if image.format == "raw":
            return None
        try:
            parent_id = os.path.basename(os.readlink(image.directory / "parent"))
        except FileNotFoundError:
            return None
        for name in ("data.raw", "data.qcow2"):
            if (self.root / parent_id / name).exists():
                return self.get(parent_id, name)
        raise EnvironmentFault(
            f"follow image {image.path}", f"image {parent_id}, which it stands on, is missing"
        )

    def ancestors(self, image: Image) -> Iterator[Image]:
        """What the image stands on, nearest first."""
        below = self.parent(image)
        while below is not None:
            yield below
            below = self.parent(below)

    def chain(self, image: Image) -> list[BackingFile]:
        """The image and what it stands on, from the top down."""
        return [BackingFile(str(part.path), part.format) for part in (image, *self.ancestors(image))]

    def size_bytes(self, image: Image) -> int:
        """The size a user of the image sees."""
        if image.format == "raw":
            return image.path.stat().st_size
        return _read_header(image)[5]

    def used_bytes(self, image: Image) -> int:
        return image.path.stat().st_blocks * 512

    def is_untouched(self, image: Image) -> bool:
        """Whether an overlay holds nothing of its own: with an empty L1 table its parent reads the same."""
        parent = self.parent(image)
        if parent is None or self.size_bytes(parent) != self.size_bytes(image):
            return False
        *_, entries, offset = _read_header(image)
        with open(image.path, "rb") as file:
            file.seek(offset)
            return entries * 8 <= MAX_L1_BYTES and not any(file.read(entries * 8))

    # ---- removing

    def remove(self, image: Image) -> None:
        """Remove one image that nothing stands on (locked)."""
        shutil.rmtree(image.directory, ignore_errors=True)

    def collect(self, heads: Iterable[Image]) -> list[str]:
        """Remove every image that is none of `heads` and below none, and what dead makers left (locked).

        Returns the names of what was removed.
        """
        garbage = self.garbage(heads)
        return [name for name in garbage if self._remove(name)]

    def garbage(self, heads: Iterable[Image]) -> list[str]:
        """Names of images that are none of `heads` and below none, and of what dead makers left (locked)."""
        live = {part.id for head in heads for part in (head, *self.ancestors(head))}
        return [entry.name for entry in os.scandir(self.root) if self._is_garbage(entry.name, live)]

    def _is_garbage(self, name: str, live: Collection[str]) -> bool:
        if name.startswith(NEW):
            with abandoned(self.root / name) as free:
                return free
        return name not in live

    def _remove(self, name: str) -> bool:
        directory = self.root / name
        if not name.startswith(NEW):
            shutil.rmtree(directory, ignore_errors=True)
            return True
        with abandoned(directory) as free:
            if free:
                shutil.rmtree(directory, ignore_errors=True)
        return free


@contextmanager
def abandoned(directory: Path) -> Iterator[bool]:
    """Whether no living process holds a temporary directory, which is locked then until the context ends.

    False when it is gone.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(fd)


@contextmanager
def _create_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_header(image: Image) -> tuple[int, ...]:
    with open(image.path, "rb") as file:
        data = file.read(QCOW2_HEADER.size)
    if len(data) < QCOW2_HEADER.size or not data.startswith(QCOW2_MAGIC):
        raise EnvironmentFault(
            f"read image {image.path}", "it is not a qcow2 file", "was it changed by hand?"
        )
    return (0, *QCOW2_HEADER.unpack(data)[1:])
