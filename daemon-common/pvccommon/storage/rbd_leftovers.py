"""What killed processes leave in an RBD pool: half made images, snapshots, devices."""

import logging
from contextlib import suppress
from typing import Any

from pvccommon.errors import (
    Busy,
)
from pvccommon.storage import rbd_mapping
from pvccommon.storage.left_mappings import left_exports, left_loops, release_mapping
from pvccommon.storage.pool import (
    Leftover,
    snapshot_name,
)
from pvccommon.storage.rbd_family import (
    snapshots,
)
from pvccommon.storage.rbd_images import (
    CLONE,
    GONE,
    NEW,
    RbdImages,
    is_abandoned_name,
    is_left,
)

log = logging.getLogger(__name__)


class RbdLeftovers(RbdImages):
    """Finding and removing what carries our hidden names and belongs to nobody any more."""

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

    def leftovers(self) -> list[Leftover]:
        with self._trying(f"sweep pool {self.name}"):
            self.sweep()
            names = sorted(self._rbd.RBD().list(self._ioctx))
            return [leftover for name in names for leftover in self._leftovers_of(name)]

    def left_mappings(self) -> list[Leftover]:
        conf = self._account.conf
        exports = left_exports(
            lambda image: (
                (image.get("driver"), image.get("pool"), image.get("conf")) == ("rbd", self._pool, conf)
            )
        )
        return left_loops(self.name, None) + exports + self._left_devices()

    def _sweep_image(self, name: str) -> list[str]:
        if name.startswith(GONE):
            return self._sweep_gone(name)
        if is_abandoned_name(name, NEW):
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
                stale = [s["name"] for s in snapshots(image) if is_abandoned_name(s["name"], CLONE)]
            if stale:
                with suppress(Busy):
                    self._users.refuse_users(image_id, f"sweep {self.describe(name)}")  # fences who made them
                with self._rbd.Image(self._ioctx, name) as image:
                    for snapshot in stale:
                        image.remove_snap(snapshot)
        except self._rbd.ImageNotFound:
            return []
        return [f"snapshot {name}@{snapshot}" for snapshot in stale]

    def _leftovers_of(self, name: str) -> list[Leftover]:
        """What a sweep has not removed of what carries our hidden names."""
        try:
            with self._rbd.Image(self._ioctx, name, read_only=True) as image:
                if name.startswith("."):
                    return self._left_image(name, image)
                dated = [(found["name"], image.get_snap_timestamp(found["id"])) for found in snapshots(image)]
        except self._rbd.ImageNotFound:
            return []
        why = "made to be cloned by a process that has ended"
        left = [snapshot for snapshot, taken in dated if is_left(snapshot, CLONE, taken)]
        return [Leftover("snapshot", snapshot_name(name, snapshot), why) for snapshot in left]

    def _left_image(self, name: str, image: Any) -> list[Leftover]:
        size = int(image.size())
        if name.startswith(GONE):  # it stays while clones of it live
            why = "a deleted volume without clones, which cannot be removed"
            return [] if list(image.list_snaps()) else [Leftover("volume", name, why, size)]
        watched = self._users.watchers(str(image.id()), f"look at image {name}")
        why = "a volume half made by a process that has ended"
        left = is_left(name, NEW, image.create_timestamp()) and not watched
        return [Leftover("volume", name, why, size)] if left else []

    def _left_devices(self) -> list[Leftover]:
        """Mappings of the kernel that a sweep could not undo."""
        if not rbd_mapping.KERNEL.exists():
            return []
        with self._trying(f"look at the devices of pool {self.name}"):
            self._sweep_devices()
            left = rbd_mapping.abandoned_devices(self._users, self._pool, self._id_or_none)
        return [Leftover("mapping", device, f"{name} is mapped for a dead process") for device, name in left]

    def _remove_leftover(self, leftover: Leftover) -> None:
        what = f"remove {leftover.kind} {self.describe(leftover.name)}"
        if leftover.kind == "mapping" and leftover.name.startswith("/dev/rbd"):
            rbd_mapping.unmap_abandoned(leftover.name)
        elif leftover.kind == "mapping":
            release_mapping(leftover.name, what)
        else:
            name, _, snapshot = leftover.name.partition("@")
            with self._trying(what):
                if not snapshot:
                    self._rbd.RBD().remove(self._ioctx, name)
                    return
                with self._rbd.Image(self._ioctx, name) as image:
                    image.remove_snap(snapshot)

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
