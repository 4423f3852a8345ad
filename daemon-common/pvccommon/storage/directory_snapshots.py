"""Snapshots of volumes of a directory pool: links to frozen images."""

import os

from pvccommon.errors import Busy, WrongState
from pvccommon.storage.directory_layout import DirectoryLayout
from pvccommon.storage.faults import os_errors
from pvccommon.storage.pool import (
    Snapshot,
    Volume,
    check_name,
)


class DirectorySnapshots(DirectoryLayout):
    """Keeping, protecting, cloning and restoring the content of volumes."""

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
