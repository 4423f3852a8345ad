"""Snapshots of RBD images."""

import threading

from pvccommon.errors import (
    Exists,
    WrongState,
)
from pvccommon.storage.pool import (
    Snapshot,
    Volume,
    check_name,
)
from pvccommon.storage.rbd_family import (
    shown_snapshots,
    snapshot_names,
)
from pvccommon.storage.rbd_images import RbdImages

# Held while a snapshot gets its name: of several that make the same at once, librbd tells all that they did.
_naming = threading.Lock()


class RbdSnapshots(RbdImages):
    """Keeping, protecting, cloning and restoring the content of volumes."""

    def create_snapshot(self, volume: str, snapshot: str) -> Snapshot:
        check_name(snapshot, "snapshot")
        what = f"create snapshot {self._full(volume, snapshot)}"
        with self._trying(what), _naming:
            with self._open(volume, "snapshot") as image:
                if snapshot in snapshot_names(image):
                    raise Exists(what, "there is one of this name", "choose another name")
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
