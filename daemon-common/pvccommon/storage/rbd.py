"""The `rbd` driver: volumes are images of a Ceph RBD pool, clones are RBD's own.

Names that begin with a dot are ours, and are shown to nobody:

    .new-<process>-<random>             a volume being imported, or cloned and resized; renamed when whole
    .gone-<random>                      a deleted volume that has clones; removed with the last of them
    <volume>@.clone-<process>-<random>  what `clone_volume` clones; in Ceph's trash once the clone exists

Clones of protected snapshots are of Ceph's clone format 1: the cluster itself refuses to unprotect the
snapshot. Clones of volumes are of format 2, which lets the source go first.
"""

import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ClassVar

from pvccommon.errors import (
    Busy,
    EnvironmentFault,
    Exists,
    NoSpace,
    NotFound,
    PvcError,
    WrongInput,
    WrongState,
)
from pvccommon.storage import rbd_mapping
from pvccommon.storage.ceph import CephAccount, CephCluster, ceph_errors, connect, disconnect, is_missing
from pvccommon.storage.faults import FREE_SPACE
from pvccommon.storage.image_users import READER, WRITER, ImageUsers, ProcessIdentity
from pvccommon.storage.pool import (
    BlockDevice,
    ByteSource,
    DiskSource,
    PoolSecret,
    PoolSpace,
    Snapshot,
    StoragePool,
    Volume,
    check_name,
    check_size,
    snapshot_name,
)
from pvccommon.storage.rbd_family import (
    clones,
    data_window,
    parent_id,
    parent_name,
    shown_snapshots,
    snapshot_names,
    snapshots,
    used_bytes,
)
from pvccommon.storage.sparse import data_runs

log = logging.getLogger(__name__)

GIB = 1024**3
# Layering, exclusive lock, object map, fast diff, deep flatten: rbd(8), "--image-feature".
FEATURES = 1 | 4 | 8 | 16 | 32
ORDER = 22  # objects of 4 MiB
WINDOW_BYTES = GIB
NEW, GONE, CLONE = ".new-", ".gone-", ".clone-"
FULL_BYTES = 16 * 1024**2  # with less free than this, a write that is not answered waits for space


class RbdPool(StoragePool):
    """Images of one RBD pool. Nothing is connected before the first use.

    Snapshots may be taken of an open volume; a guest's are then as after a power cut.
    """

    driver: ClassVar[str] = "rbd"

    def __init__(
        self,
        name: str,
        account: CephAccount,
        *,
        ceph_pool: str | None = None,
        max_volume_bytes: int = 16_384 * GIB,
        mapping: rbd_mapping.MappingMode = "auto",
    ) -> None:
        super().__init__(name)
        self._account = account
        self._pool = ceph_pool or name
        self._max_volume_bytes = max_volume_bytes
        self._mapping = mapping

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
            snapshot = _own_name(CLONE)
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
            self._rbd.RBD().rename(self._ioctx, name, grave)
            stack.close()
            self._bury(image_id)

    def rename_volume(self, name: str, new_name: str) -> Volume:
        check_name(new_name)
        what = f"rename volume {self.describe(name)} to {new_name}"
        with self._trying(what), self._closed(name, "rename", what):
            self._rbd.RBD().rename(self._ioctx, name, new_name)
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

    # ---- snapshots

    def create_snapshot(self, volume: str, snapshot: str) -> Snapshot:
        check_name(snapshot, "snapshot")
        with self._trying(f"create snapshot {self._full(volume, snapshot)}"):
            with self._open(volume, "snapshot") as image:
                image.create_snap(snapshot)
            return self.stat_snapshot(volume, snapshot)

    def list_snapshots(self, volume: str) -> list[Snapshot]:
        with self._trying(f"list snapshots of {self.describe(volume)}"):
            with self._open(volume, "list snapshots of", read_only=True) as image:
                return [self._snapshot(volume, image, found) for found in shown_snapshots(image)]

    def delete_snapshot(self, volume: str, snapshot: str, *, missing_ok: bool = False) -> None:
        check_name(snapshot, "snapshot")
        what = f"delete snapshot {self._full(volume, snapshot)}"
        with self._trying(what), self._open(volume, "delete a snapshot of") as image:
            if snapshot not in snapshot_names(image):
                if missing_ok:
                    return
                raise self._no_snapshot("delete", volume, snapshot)
            if image.is_protected_snap(snapshot):
                raise WrongState(what, "it is protected", "unprotect it first")
            image.remove_snap(snapshot)

    def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> Snapshot:
        check_name(new_name, "snapshot")
        what = f"rename snapshot {self._full(volume, snapshot)} to {new_name}"
        with self._trying(what), self._snapshot_of(volume, snapshot, "rename") as image:
            if new_name in snapshot_names(image):
                raise Exists(what, "there is one of this name", "choose another name")
            image.rename_snap(snapshot, new_name)
        return self.stat_snapshot(volume, new_name)

    def protect_snapshot(self, volume: str, snapshot: str) -> None:
        what = f"protect snapshot {self._full(volume, snapshot)}"
        with self._trying(what), self._snapshot_of(volume, snapshot, "protect") as image:
            if not image.is_protected_snap(snapshot):
                image.protect_snap(snapshot)

    def unprotect_snapshot(self, volume: str, snapshot: str) -> None:
        what = f"unprotect snapshot {self._full(volume, snapshot)}"
        with self._trying(what), self._snapshot_of(volume, snapshot, "unprotect") as image:
            if not image.is_protected_snap(snapshot):
                return
            try:
                image.unprotect_snap(snapshot)
            except self._rbd.ImageBusy as exc:
                clones = ", ".join(self.stat_snapshot(volume, snapshot).children)
                why = f"it has clones: {clones}" if clones else "it has a clone that is being removed"
                raise WrongState(what, why, "delete or flatten them first") from exc

    def clone_snapshot(
        self, volume: str, snapshot: str, name: str, *, size_bytes: int | None = None
    ) -> Volume:
        check_name(name)
        what = f"clone snapshot {self._full(volume, snapshot)} as {self.describe(name)}"
        with self._trying(what):
            with self._snapshot_of(volume, snapshot, "clone", read_only=True) as image:
                if not image.is_protected_snap(snapshot):
                    raise WrongState(what, "the snapshot is not protected", "protect it first")
                image.set_snap(snapshot)
                size = self._clone_size(name, image.size(), size_bytes)
            self._clone(volume, snapshot, name, size, version=1)
            return self.stat_volume(name)

    def rollback_snapshot(self, volume: str, snapshot: str) -> Volume:
        what = f"roll back to snapshot {self._full(volume, snapshot)}"
        check_name(snapshot, "snapshot")
        with self._trying(what), self._changing(volume, "roll back", what) as image:
            if snapshot not in snapshot_names(image):
                raise self._no_snapshot("roll back to", volume, snapshot)
            image.rollback_to_snap(snapshot)
        return self.stat_volume(volume)

    # ---- the pool

    def space(self) -> PoolSpace:
        return self._cluster.space(self._pool)

    def sweep(self) -> list[str]:
        with self._trying(f"sweep pool {self.name}"):
            names = list(self._rbd.RBD().list(self._ioctx))
            removed = self._sweep_devices()
            for name in names:
                try:
                    removed += self._sweep_image(name)
                except Busy as exc:
                    log.info("left for the next sweep: %s", exc.message)
            return removed

    # ---- content

    @contextmanager
    def open_device(self, name: str, *, read_only: bool = False) -> Iterator[BlockDevice]:
        what = f"open volume {self.describe(name)}"
        with self._trying(what), self._open(name, "open", read_only=True) as opened:
            image = rbd_mapping.Image(opened.id(), self._pool, name, self.describe(name))
        with rbd_mapping.map_image(
            self._account, self._users, image, self._mapping, read_only=read_only
        ) as device:
            yield device

    def mapping(self) -> str:
        return rbd_mapping.choose(self._mapping)

    def disk_source(self, name: str) -> DiskSource:
        what = f"find volume {self.describe(name)}"
        with self._trying(what), self._open(name, "find", read_only=True) as image:
            image_id = image.id()
        self._users.refuse_noted(image_id, what)
        return DiskSource(
            "network",
            f"{self._pool}/{name}",
            "raw",
            protocol="rbd",
            hosts=self._cluster.monitors(),
            user=self._account.user,
            secret=self._cluster.secret().name,
        )

    def secret(self) -> PoolSecret:
        return self._cluster.secret()

    def import_stream(self, name: str, stream: ByteSource, size_bytes: int) -> Volume:
        check_name(name)
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        what = f"import volume {self.describe(name)}"
        with self._trying(what):
            self._refuse_taken(name)
            self._refuse_full(what)
            with self._new_image(name) as draft:
                self._create_image(draft, size)
                with (
                    self._rbd.Image(self._ioctx, draft) as image,
                    self._users.holding(str(image.id()), WRITER),
                ):
                    for offset, data in data_runs(stream, size_bytes, what):
                        image.write(bytes(data), offset)
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

    # ---- images

    @property
    def _rbd(self) -> Any:
        import rbd

        return rbd

    @property
    def _cluster(self) -> CephCluster:
        return connect(self._account)

    @property
    def _ioctx(self) -> Any:
        return self._cluster.pool(self._pool)

    @property
    def _users(self) -> ImageUsers:
        return ImageUsers(self._cluster, self._pool)

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Errors of the libraries become ours; a connection that has been fenced is not used again."""
        try:
            with ceph_errors(what):
                self._ioctx  # noqa: B018 - connects, so that a missing library is an error of ours
                yield
        except EnvironmentFault as exc:
            if "fenced" in exc.why:
                disconnect(self._account)
            if "does not answer" in exc.why:
                self._refuse_full(what, exc)
            raise

    def _refuse_full(self, what: str, cause: EnvironmentFault | None = None) -> None:
        """A cluster without space does not refuse what is written: it does not answer until there is some."""
        try:
            free = self.space().free_bytes
        except PvcError:
            return  # the operation itself finds out, or has
        if free < FULL_BYTES:
            raise NoSpace(what, f"pool {self.name} is full", FREE_SPACE) from cause

    @contextmanager
    def _open(
        self, name: str, verb: str, *, read_only: bool = False, image_id: str | None = None
    ) -> Iterator[Any]:
        """An rbd.Image by name, or by id; raises NotFound."""
        check_name(name)
        named = {"image_id": image_id} if image_id else {"name": name}
        try:
            image = self._rbd.Image(self._ioctx, **named, read_only=read_only)
        except self._rbd.ImageNotFound as exc:
            raise self._no_volume(verb, name) from exc
        with image:
            yield image

    @contextmanager
    def _closed(self, name: str, verb: str, what: str) -> Iterator[str]:
        """The id of an image nobody has open, and nobody will open until the context ends. Raises Busy."""
        with self._open(name, verb, read_only=True) as image:
            image_id = str(image.id())
        with self._users.turn(image_id, what):
            self._users.refuse_users(image_id, what)
            with self._open(name, verb, read_only=True) as image:
                if image.id() != image_id:
                    raise Busy(what, "the volume was changed at the same time", "try again")
            yield image_id

    @contextmanager
    def _changing(self, name: str, verb: str, what: str) -> Iterator[Any]:
        """An image open for ourselves alone, for something that may take long."""
        with ExitStack() as stack:
            with self._closed(name, verb, what) as image_id:
                image = stack.enter_context(self._open(name, verb, image_id=image_id))
                stack.enter_context(self._users.holding(image_id, WRITER))
            yield image

    def _create_image(self, name: str, size: int) -> None:
        self._rbd.RBD().create(self._ioctx, name, size, order=ORDER, old_format=False, features=FEATURES)

    @contextmanager
    def _new_image(self, name: str) -> Iterator[str]:
        """The name of an image to make; it gets its real one when all is done, or is removed."""
        draft = _own_name(NEW)
        try:
            yield draft
            self._rbd.RBD().rename(self._ioctx, draft, name)
        except BaseException:
            self._remove_image(draft)
            raise

    def _clone(self, source: str, snapshot: str, name: str, size: int | None, *, version: int) -> None:
        """Clone; with a size the clone appears when it has been resized."""
        ioctx, rbd = self._ioctx, self._rbd

        self._refuse_full(f"clone volume {self.describe(source)} as {self.describe(name)}")

        def clone(target: str) -> None:
            with self._cluster.clone_format(version):
                rbd.RBD().clone(ioctx, source, snapshot, ioctx, target, features=FEATURES)

        if size is None:
            clone(name)
            return
        self._refuse_taken(name)
        with self._new_image(name) as draft:
            clone(draft)
            with rbd.Image(ioctx, draft) as image:
                image.resize(size)

    def _remove_image(self, name: str) -> None:
        """Remove an image of ours, if it is there; what cannot be removed now is left for a sweep."""
        try:
            self._rbd.RBD().remove(self._ioctx, name)
        except self._rbd.Error as exc:
            if not is_missing(exc):
                log.warning("image not removed: pool=%s image=%s reason=%s", self.name, name, exc)

    def _remove_half_made(self, name: str) -> bool:
        """A process killed while it made an image leaves a name without one: whether there was such."""
        try:
            self._rbd.RBD().remove(self._ioctx, name)
        except self._rbd.ImageNotFound:
            return False
        return True

    def _bury(self, image_id: str) -> None:
        """Remove a deleted image that has no clones left, then what it was itself the last clone of."""
        buried: str | None = image_id
        while buried is not None:
            try:
                buried = self._bury_one(buried)
            except self._rbd.Error as exc:
                if not is_missing(exc):
                    log.info("deleted image kept for now: pool=%s id=%s reason=%s", self.name, buried, exc)
                return

    def _bury_one(self, image_id: str) -> str | None:
        """The id of its parent when it has been removed."""
        with self._rbd.Image(self._ioctx, image_id=image_id) as image:
            name = str(image.get_name())
            if not name.startswith(GONE):
                return None
            for snapshot in snapshots(image):
                if image.is_protected_snap(snapshot["name"]):
                    image.unprotect_snap(snapshot["name"])
                image.remove_snap(snapshot["name"])
            if list(image.list_snaps()):
                return None  # clones of it live
            parent = parent_id(image)
        self._rbd.RBD().remove(self._ioctx, name)
        return parent

    # ---- what is known

    def _volume_or_none(self, name: str) -> Volume | None:
        try:
            with self._open(name, "find", read_only=True) as image:
                used = used_bytes(image)
                return Volume(
                    self.name, name, int(image.size()), used, parent_name(self._ioctx, image), "raw"
                )
        except NotFound:
            return None

    def _snapshot(self, volume: str, image: Any, found: dict[str, Any]) -> Snapshot:
        name = str(found["name"])
        created = image.get_snap_timestamp(found["id"]).timestamp()
        protected = bool(image.is_protected_snap(name))
        children = tuple(sorted(clones(self._ioctx, image.id(), found["id"])))
        return Snapshot(self.name, volume, name, int(found["size"]), created, protected, children)

    @contextmanager
    def _snapshot_of(
        self, volume: str, snapshot: str, verb: str, *, read_only: bool = False
    ) -> Iterator[Any]:
        """The image a snapshot is of; raises NotFound for either."""
        check_name(snapshot, "snapshot")
        with self._open(volume, f"{verb} a snapshot of", read_only=read_only) as image:
            if snapshot not in snapshot_names(image):
                raise self._no_snapshot(verb, volume, snapshot)
            yield image

    def _full(self, volume: str, snapshot: str) -> str:
        return snapshot_name(self.describe(volume), snapshot)

    # ---- refusals

    def _refuse_taken(self, name: str) -> None:
        if self._volume_or_none(name) is not None:
            raise Exists(
                f"create volume {self.describe(name)}", "there is one of this name", "choose another name"
            )

    def _refuse_protected(self, name: str, image_id: str, what: str) -> None:
        with self._open(name, "delete", image_id=image_id, read_only=True) as image:
            shown = [self._snapshot(name, image, found) for found in shown_snapshots(image)]
        protected = [snapshot for snapshot in shown if snapshot.protected]
        if not protected:
            return
        clones = sorted(clone for snapshot in protected for clone in snapshot.children)
        why = f"its snapshot {', '.join(snapshot.name for snapshot in protected)} is protected"
        why += f" and has clones: {', '.join(clones)}" if clones else ""
        raise WrongState(what, why, "delete or flatten the clones, then unprotect the snapshot")

    def _clone_size(self, name: str, old_size: int, size_bytes: int | None) -> int | None:
        """The size to give to a clone, None when it already has it."""
        if size_bytes is None:
            return None
        size = check_size(self.describe(name), size_bytes, self._max_volume_bytes)
        if size < old_size:
            raise WrongInput(
                f"clone volume {self.describe(name)}", f"{size} bytes is less than the source's {old_size}"
            )
        return None if size == old_size else size

    # ---- sweeping

    def _sweep_image(self, name: str) -> list[str]:
        if name.startswith(GONE):
            return self._sweep_gone(name)
        if _is_abandoned(name, NEW):
            return self._sweep_new(name)
        return [] if name.startswith(".") else self._sweep_snapshots(name)

    def _sweep_gone(self, name: str) -> list[str]:
        image_id = self._id_or_none(name)
        if image_id is None:
            self._remove_image(name)
            return []
        self._bury(image_id)
        return [] if name in self._rbd.RBD().list(self._ioctx) else [f"image {name}"]

    def _sweep_new(self, name: str) -> list[str]:
        image_id = self._id_or_none(name)
        if image_id is not None:
            self._users.refuse_users(image_id, f"remove image {name}")  # fences its dead maker
        self._remove_image(name)
        return [f"image {name}"]

    def _sweep_snapshots(self, name: str) -> list[str]:
        """Snapshots that a killed `clone_volume` has left."""
        try:
            with self._rbd.Image(self._ioctx, name, read_only=True) as image:
                image_id = str(image.id())
                stale = [s["name"] for s in snapshots(image) if _is_abandoned(s["name"], CLONE)]
            if stale:
                with suppress(Busy):
                    self._users.refuse_users(image_id, f"sweep {self.describe(name)}")  # fences who made them
                with self._rbd.Image(self._ioctx, name) as image:
                    for snapshot in stale:
                        image.remove_snap(snapshot)
        except self._rbd.ImageNotFound:
            return []
        return [f"snapshot {name}@{snapshot}" for snapshot in stale]

    def _sweep_devices(self) -> list[str]:
        if not rbd_mapping.KERNEL.exists():
            return []
        return rbd_mapping.sweep_kernel_devices(self._users, self._pool, self._id_or_none)

    def _id_or_none(self, name: str) -> str | None:
        try:
            with self._rbd.Image(self._ioctx, name, read_only=True) as image:
                return str(image.id())
        except self._rbd.ImageNotFound:
            return None


def _own_name(prefix: str) -> str:
    """A hidden name that tells which process made it."""
    return f"{prefix}{ProcessIdentity.current().text}-{secrets.token_hex(4)}"


def _is_abandoned(name: str, prefix: str) -> bool:
    """Whether what carries a hidden name was made by a process of this host that is dead."""
    if not name.startswith(prefix):
        return False
    identity = ProcessIdentity.parse(name.removeprefix(prefix).rpartition("-")[0])
    return identity is not None and identity.is_dead
