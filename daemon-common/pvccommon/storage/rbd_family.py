"""What an open RBD image tells about itself: its snapshots, what it stands on and what stands on it.

`image` is an rbd.Image, `ioctx` the rados.Ioctx of its pool. Names with a dot in front are the driver's own.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pvccommon.storage.ceph import is_missing
from pvccommon.storage.pool import snapshot_name
from pvccommon.storage.sparse import PIECE_BYTES, ZERO_PIECE


def seconds(moment: datetime) -> float:
    """Seconds since the epoch; the binding gives times in UTC that do not say so."""
    return moment.replace(tzinfo=UTC).timestamp()


def parent_name(ioctx: Any, image: Any) -> str | None:
    """The nearest snapshot an operator knows, on the way down."""
    import rbd

    found = parent_id(image)
    if found is None:
        return None
    snapshot = image.get_parent_image_spec()["snap_name"]
    try:
        with rbd.Image(ioctx, image_id=found, read_only=True) as parent:
            if snapshot in snapshot_names(parent):
                return snapshot_name(str(parent.get_name()), snapshot)
            return parent_name(ioctx, parent)
    except rbd.ImageNotFound:
        return None  # in another pool, or it has just been flattened


def snapshots(image: Any) -> list[dict[str, Any]]:
    """Those that are not in Ceph's trash, oldest first."""
    found = [snapshot for snapshot in image.list_snaps() if snapshot["namespace"] == 0]
    return sorted(found, key=lambda snapshot: int(snapshot["id"]))


def shown_snapshots(image: Any) -> list[dict[str, Any]]:
    return [snapshot for snapshot in snapshots(image) if not snapshot["name"].startswith(".")]


def snapshot_names(image: Any) -> set[str]:
    return {snapshot["name"] for snapshot in shown_snapshots(image)}


def remove_snapshots(image: Any) -> bool:
    """Remove all that can be, protected or not; whether none is left: those with clones are."""
    for snapshot in snapshots(image):
        if image.is_protected_snap(snapshot["name"]):
            image.unprotect_snap(snapshot["name"])
        image.remove_snap(snapshot["name"])
    return not list(image.list_snaps())


def clones(ioctx: Any, image_id: str, snapshot_id: int) -> Iterator[str]:
    """Names of volumes that stand on a snapshot, be it by way of what is hidden."""
    import rbd

    try:
        image = rbd.Image(ioctx, image_id=image_id, read_only=True)
    except rbd.ImageNotFound:
        return
    with image:
        image.set_snap_by_id(snapshot_id)
        children = list(image.list_children2())
    for child in children:
        if not child["image"].startswith("."):
            yield str(child["image"])
        yield from _hidden_clones(ioctx, str(child["id"]))


def _hidden_clones(ioctx: Any, image_id: str) -> Iterator[str]:
    import rbd

    try:
        with rbd.Image(ioctx, image_id=image_id, read_only=True) as image:
            shown = snapshot_names(image)
            hidden = [found["id"] for found in image.list_snaps() if found["name"] not in shown]
    except rbd.ImageNotFound:
        return
    for snapshot_id in hidden:
        yield from clones(ioctx, image_id, snapshot_id)


def parent_id(image: Any) -> str | None:
    try:
        return str(image.parent_id())
    except Exception as exc:
        if is_missing(exc):
            return None
        raise


def used_bytes(image: Any) -> int:
    """What the image occupies without its parent, in whole objects as the object map has them (`rbd du`)."""
    return _extent_bytes(image, None)


def _extent_bytes(image: Any, since: str | None) -> int:
    lengths: list[int] = []

    def note(_offset: int, length: int, exists: bool) -> None:
        if exists:
            lengths.append(length)

    image.diff_iterate(0, image.size(), since, note, include_parent=False, whole_object=True)
    return sum(lengths)


def snapshot_used_bytes(image: Any, snapshot: dict[str, Any]) -> int:
    """What was written between the snapshot before it and this one, in whole objects."""
    before = [found["name"] for found in snapshots(image) if found["id"] < snapshot["id"]]
    image.set_snap(snapshot["name"])
    try:
        return _extent_bytes(image, before[-1] if before else None)
    finally:
        image.set_snap(None)


def data_window(image: Any, start: int, length: int) -> Iterator[bytes]:
    """The content of a part of an image in pieces; what holds no data is not read."""
    extents: list[tuple[int, int]] = []

    def note(offset: int, size: int, exists: bool) -> None:
        if exists:
            extents.append((offset, offset + size))

    image.diff_iterate(start, length, None, note, include_parent=True, whole_object=True)
    for offset in range(start, start + length, PIECE_BYTES):
        size = min(PIECE_BYTES, start + length - offset)
        while extents and extents[0][1] <= offset:
            extents.pop(0)
        has_data = bool(extents) and extents[0][0] < offset + size
        yield image.read(offset, size) if has_data else ZERO_PIECE[:size]
