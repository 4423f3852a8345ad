"""Images of an RBD pool: opening and making them, what is known of them, and what is refused."""

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, ClassVar

from pvccommon.errors import (
    Busy,
    EnvironmentFault,
    Exists,
    NoSpace,
    NotFound,
    WrongInput,
    WrongState,
)
from pvccommon.storage import rbd_mapping
from pvccommon.storage.ceph import CephAccount, CephCluster, ceph_errors, connect, disconnect, is_missing
from pvccommon.storage.faults import FREE_SPACE
from pvccommon.storage.image_users import WRITER, ImageUsers, ProcessIdentity
from pvccommon.storage.pool import (
    Snapshot,
    StoragePool,
    Volume,
    check_name,
    check_piece,
    check_size,
    snapshot_name,
)
from pvccommon.storage.rbd_family import (
    clones,
    parent_id,
    parent_name,
    remove_snapshots,
    seconds,
    shown_snapshots,
    snapshot_names,
    snapshot_used_bytes,
    used_bytes,
)

log = logging.getLogger(__name__)

GIB = 1024**3
# rbd(8), "--image-feature"; the numbers are RBD_FEATURE_* of ceph: src/include/rbd/features.h
FEATURES = {"layering": 1, "exclusive-lock": 4, "object-map": 8, "fast-diff": 16, "deep-flatten": 32}
FEATURE_BITS = sum(FEATURES.values())
ORDER = 22  # objects of 4 MiB
WINDOW_BYTES = GIB
NEW, GONE, CLONE = ".new-", ".gone-", ".clone-"
TRASH = "rbd_trash"
# Hidden names of a host that is not ours are somebody's work until they are so old: no import or clone has
# them for longer without being seen to have the image open.
FORGOTTEN_S = 24 * 3600


class RbdImages(StoragePool):
    """The images of one Ceph pool, and the connection to it, which is made when first needed."""

    driver: ClassVar[str] = "rbd"
    shared: ClassVar[bool] = True
    object_order: ClassVar[int] = ORDER
    features: ClassVar[tuple[str, ...]] = tuple(FEATURES)

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
                self._cluster.pool(self._pool)  # so that a missing library is an error of ours
                yield
        except EnvironmentFault as exc:
            if "fenced" in exc.why:
                disconnect(self._account)
            if "does not answer" in exc.why:
                self._refuse_full(what, exc)
            raise

    def _refuse_full(self, what: str, cause: EnvironmentFault | None = None) -> None:
        """A cluster without space does not refuse what is written: it does not answer until there is some."""
        full = self.find_full(what)
        if full is not None:
            raise full from cause

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
        # librbd removes images by way of this object, which could not be made once the pool is full.
        self._ioctx.write(TRASH, b"")
        self._rbd.RBD().create(
            self._ioctx, name, size, order=ORDER, old_format=False, features=sum(FEATURES.values())
        )

    @contextmanager
    def _new_image(self, name: str) -> Iterator[str]:
        """The name of an image to make; it gets its real one when all is done, or is removed."""
        draft = own_name(NEW)
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
                rbd.RBD().clone(ioctx, source, snapshot, ioctx, target, features=FEATURE_BITS)

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
            if not remove_snapshots(image):
                return None  # clones of it live
            parent = parent_id(image)
        self._rbd.RBD().remove(self._ioctx, name)
        return parent

    def _delete_from_full_pool(self, name: str, what: str) -> None:
        """A full pool takes no other name for an image: it is removed under its own, if nothing needs it."""
        with self._rbd.Image(self._ioctx, name) as image:
            if not remove_snapshots(image):
                raise NoSpace(what, "it has clones, and the pool is too full to keep it for them", FREE_SPACE)
            parent = parent_id(image)
        self._rbd.RBD().remove(self._ioctx, name)
        if parent is not None:
            self._bury(parent)

    # ---- what is known

    def _volume_or_none(self, name: str) -> Volume | None:
        try:
            with self._open(name, "find", read_only=True) as image:
                used = used_bytes(image)
                parent, made = parent_name(self._ioctx, image), seconds(image.create_timestamp())
                return Volume(self.name, name, int(image.size()), used, parent, "raw", made)
        except NotFound:
            return None

    def _snapshot(self, volume: str, image: Any, found: dict[str, Any]) -> Snapshot:
        name = str(found["name"])
        created = seconds(image.get_snap_timestamp(found["id"]))
        protected = bool(image.is_protected_snap(name))
        children = tuple(sorted(clones(self._ioctx, image.id(), found["id"])))
        used = snapshot_used_bytes(image, found)
        return Snapshot(self.name, volume, name, int(found["size"]), created, protected, children, used)

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


class ImageWriter:
    """The content of a new image, piece by piece."""

    def __init__(self, image: Any, size_bytes: int, what: str) -> None:
        self._image = image
        self._size_bytes = size_bytes
        self._what = what

    def write(self, offset: int, data: bytes, /) -> None:
        """Raises WrongInput for a piece that is not within the image."""
        check_piece(self._what, offset, len(data), self._size_bytes)
        self._image.write(data, offset)


def own_name(prefix: str) -> str:
    """A hidden name that tells which process made it."""
    return f"{prefix}{ProcessIdentity.current().text}-{secrets.token_hex(4)}"


def is_left(name: str, prefix: str, made: datetime) -> bool:
    """Whether what carries a hidden name can be taken for left: its maker is known to be dead, or is of
    another host, of which nothing is known, and has had more than enough time."""
    if not name.startswith(prefix):
        return False
    identity = ProcessIdentity.parse(name.removeprefix(prefix).rpartition("-")[0])
    if identity is None or not identity.is_here:
        return time.time() - seconds(made) > FORGOTTEN_S
    return identity.is_dead


def is_abandoned_name(name: str, prefix: str) -> bool:
    """Whether what carries a hidden name was made by a process of this host that is dead."""
    if not name.startswith(prefix):
        return False
    identity = ProcessIdentity.parse(name.removeprefix(prefix).rpartition("-")[0])
    return identity is not None and identity.is_dead
