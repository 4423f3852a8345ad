"""The `rbd` driver: volumes are images of a Ceph RBD pool, clones are RBD's own.

Names that begin with a dot are ours, and are shown to nobody:

    .new-<process>-<random>             a volume being imported, or cloned and resized; renamed when whole
    .gone-<random>                      a deleted volume that has clones; removed with the last of them
    <volume>@.clone-<process>-<random>  what `clone_volume` clones; in Ceph's trash once the clone exists

Clones of protected snapshots are of Ceph's clone format 1: the cluster itself refuses to unprotect the
snapshot. Clones of volumes are of format 2, which lets the source go first.
"""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pvccommon.errors import (
    Busy,
    Exists,
    NotFound,
    WrongInput,
)
from pvccommon.storage import rbd_mapping
from pvccommon.storage.ceph import is_full
from pvccommon.storage.image_users import READER, WRITER, ProcessIdentity, take_for_dead, taken_for_dead
from pvccommon.storage.pool import (
    BlockDevice,
    ByteSource,
    DiskSource,
    PoolSecret,
    PoolSpace,
    PoolStatistics,
    Volume,
    VolumeWriter,
    check_fits,
    check_name,
    check_size,
)
from pvccommon.storage.rbd_family import (
    data_window,
    parent_id,
)
from pvccommon.storage.rbd_images import CLONE, GONE, WINDOW_BYTES, ImageWriter, own_name
from pvccommon.storage.rbd_leftovers import RbdLeftovers
from pvccommon.storage.rbd_snapshots import RbdSnapshots
from pvccommon.storage.sparse import data_runs, overwrite


class RbdPool(RbdSnapshots, RbdLeftovers):
    """Images of one RBD pool. Nothing is connected before the first use.

    Snapshots may be taken of an open volume; a guest's are then as after a power cut.
    """

    # ---- volumes

    def create_volume(self, name: str, size_bytes: int) -> Volume:
        check_name(name)
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        what = f"create volume {self.describe(name)}"
        with self._trying(what):
            self._refuse_full(what)
            self._create_image(name, size)
            return self.stat_volume(name)

    def clone_volume(self, source: str, name: str, *, size_bytes: int | None = None) -> Volume:
        check_name(name)
        what = f"clone volume {self.describe(source)} as {self.describe(name)}"
        with self._trying(what), self._closed(source, "clone", what) as image_id:
            snapshot = own_name(CLONE)
            with (
                self._open(source, "clone", image_id=image_id) as image,
                self._users.holding(image_id, WRITER),
            ):
                size = self._clone_size(name, image.size(), size_bytes)
                self._refuse_taken(name)
                image.create_snap(snapshot)
                try:
                    self._clone(source, snapshot, name, size, version=2)
                finally:
                    # While it has a clone it stays, in Ceph's own trash, and goes with that clone.
                    image.remove_snap(snapshot)
            return self.stat_volume(name)

    def delete_volume(self, name: str, *, missing_ok: bool = False) -> None:
        check_name(name)
        what = f"delete volume {self.describe(name)}"
        with self._trying(what), ExitStack() as stack:
            try:
                image_id = stack.enter_context(self._closed(name, "delete", what))
            except NotFound:
                if self._remove_half_made(name) or missing_ok:
                    return
                raise
            self._refuse_protected(name, image_id, what)
            grave = f"{GONE}{secrets.token_hex(8)}"
            try:
                self._rbd.RBD().rename(self._ioctx, name, grave)
            except self._rbd.Error as exc:
                if not is_full(exc):
                    raise
                stack.close()
                self._delete_from_full_pool(name, what)
            else:
                stack.close()
                self._bury(image_id)

    def rename_volume(self, name: str, new_name: str) -> Volume:
        check_name(new_name)
        what = f"rename volume {self.describe(name)} to {new_name}"
        with self._trying(what), self._closed(name, "rename", what) as image_id:
            self._rbd.RBD().rename(self._ioctx, name, new_name)
            # Of two at one time that take the same name, librbd tells both that they have it.
            with self._open(new_name, "rename", read_only=True) as image:
                if image.id() != image_id:
                    raise Exists(what, "another volume has just taken this name", "choose another name")
            return self.stat_volume(new_name)

    def resize_volume(self, name: str, size_bytes: int) -> Volume:
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        what = f"resize volume {self.describe(name)}"
        with self._trying(what), self._closed(name, "resize", what) as image_id:
            with self._open(name, "resize", image_id=image_id) as image:
                old_size = image.size()
                if size < old_size:
                    raise WrongInput(what, f"{size} bytes is less than its {old_size}; volumes are never cut")
                image.resize(size)
            return self.stat_volume(name)

    def flatten_volume(self, name: str) -> Volume:
        what = f"flatten volume {self.describe(name)}"
        with self._trying(what), self._changing(name, "flatten", what) as image:
            parent = parent_id(image)
            if parent is not None:
                image.flatten()
        if parent is not None:
            self._bury(parent)
        return self.stat_volume(name)

    def list_volumes(self) -> list[Volume]:
        with self._trying(f"list volumes of pool {self.name}"):
            names = [name for name in self._rbd.RBD().list(self._ioctx) if not name.startswith(".")]
            found = (self._volume_or_none(name) for name in sorted(names))
            return [volume for volume in found if volume is not None]

    def volume_or_none(self, name: str) -> Volume | None:
        check_name(name)
        with self._trying(f"find volume {self.describe(name)}"):
            return self._volume_or_none(name)

    # ---- the pool

    def space(self) -> PoolSpace:
        return self._cluster.space(self._pool)

    def statistics(self) -> PoolStatistics:
        return self._cluster.statistics(self._pool)

    def count_volumes(self) -> int:
        with self._trying(f"list volumes of pool {self.name}"):
            return sum(not name.startswith(".") for name in self._rbd.RBD().list(self._ioctx))

    # ---- content

    @contextmanager
    def open_device(self, name: str, *, read_only: bool = False) -> Iterator[BlockDevice]:
        what = f"open volume {self.describe(name)}"
        with self._trying(what), self._open(name, "open", read_only=True) as opened:
            image = rbd_mapping.Image(opened.id(), self._pool, name, self.describe(name))
            if not read_only:
                self._refuse_full(what)  # QEMU would wait for space, to take the image's lock
        with rbd_mapping.map_image(
            self._account,
            self._users,
            image,
            self._mapping,
            read_only=read_only,
            find_fault=lambda: self.find_full(f"write to volume {self.describe(name)}"),
        ) as device:
            yield device

    def is_open(self, name: str) -> bool:
        what = f"look at volume {self.describe(name)}"
        try:
            with self._trying(what), self._closed(name, "find", what):
                return False
        except Busy:
            return True

    def mapping(self) -> str:
        return rbd_mapping.choose(self._mapping)

    def disk_source(self, name: str, *, read_only: bool = False) -> DiskSource:
        what = f"find volume {self.describe(name)}"
        with self._trying(what), self._open(name, "find", read_only=True) as image:
            image_id = image.id()
            self._refuse_full(what)  # as above; the start of the domain would not come back
        self._users.refuse_noted(image_id, what, readers_may=read_only)
        return DiskSource(
            "network",
            f"{self._pool}/{name}",
            "raw",
            protocol="rbd",
            hosts=self._cluster.monitors(),
            user=self._account.user,
            secret=self._cluster.secret().name,
        )

    def identity(self) -> str:
        with self._trying(f"identify pool {self.name}"):
            return f"{self._cluster.rados.get_fsid()}/{self._pool}"

    def client(self) -> str:
        """<process>/<address>"""
        with self._trying(f"connect to pool {self.name}"):
            return f"{ProcessIdentity.current().text}/{self._cluster.address}"

    def fence(self, client: str) -> None:
        process, _, address = client.partition("/")
        with self._trying(f"fence a lost client of pool {self.name}"):
            self._cluster.fence(address)
        if process != ProcessIdentity.current().text:  # else an earlier connection of our own
            take_for_dead(process)

    @contextmanager
    def expelled(self, client: str) -> Iterator[None]:
        process, _, address = client.partition("/")
        with self._trying(f"fence a lost client of pool {self.name}"):
            self._cluster.fence(address)
        if process == ProcessIdentity.current().text:
            yield
            return
        with taken_for_dead(process):
            self.sweep()
            yield

    def secret(self) -> PoolSecret:
        return self._cluster.secret()

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
        with self._trying(what):
            self._refuse_taken(name)
            self._refuse_full(what)
            with self._new_image(name) as draft:
                self._create_image(draft, size)
                with (
                    self._rbd.Image(self._ioctx, draft) as image,
                    self._users.holding(str(image.id()), WRITER),
                ):
                    yield ImageWriter(image, size, what)
                    image.flush()

    def write_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        what = f"overwrite volume {self.describe(name)}"
        with self._trying(what), self._changing(name, "overwrite", what) as image:
            check_fits(what, size_bytes, image.size())
            self._refuse_full(what)

            def clear(offset: int, length: int) -> None:
                for start in range(offset, offset + length, WINDOW_BYTES):
                    image.write_zeroes(start, min(WINDOW_BYTES, offset + length - start))

            writer = ImageWriter(image, image.size(), what)

            def write(data: memoryview, offset: int) -> None:
                writer.write(offset, bytes(data))

            overwrite(stream, size_bytes, image.size(), what, write=write, clear=clear)
            image.flush()
        return self.stat_volume(name)

    def export_stream(self, name: str) -> Iterator[bytes]:
        with self._trying(f"find volume {self.describe(name)}"):
            with self._open(name, "export", read_only=True) as image:
                image_id = image.id()
        return self._pieces(name, image_id)

    def _pieces(self, name: str, image_id: str) -> Iterator[bytes]:
        what = f"export volume {self.describe(name)}"
        with self._trying(what), ExitStack() as stack:
            with self._users.turn(image_id, what):
                self._users.refuse_users(image_id, what, readers_may=True)
                # Not read-only, so that other processes see us.
                image = stack.enter_context(self._open(name, "export", image_id=image_id))
                stack.enter_context(self._users.holding(image_id, READER))
            size = image.size()
            for offset in range(0, size, WINDOW_BYTES):
                yield from data_window(image, offset, min(WINDOW_BYTES, size - offset))
