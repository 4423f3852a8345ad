"""Snapshots of volumes."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields

from pvcapid.endpoint import endpoint
from pvcapid.fields import PoolName, VolumeName, documented
from pvcapid.look_up import texts_matching
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvcapid.storage_nodes import ANSWER_TIMEOUT_S, SLOW_TIMEOUT_S, Place, place_of_volume
from pvcapid.volume_users import require_no_image, require_unused
from pvcapid.volumes import OnNode, VolumeFilter, find_place, list_on_nodes
from pvccommon.errors import NotFound
from pvccommon.names import IMAGE_SNAPSHOT

blueprint = Blueprint("snapshots", __name__)


class SnapshotFilter(VolumeFilter):
    volume = VolumeName(metadata=documented("only snapshots of this volume"))


class NewSnapshot(OnNode):
    pool = PoolName(required=True)
    volume = VolumeName(required=True)
    snapshot = VolumeName(required=True)


class SnapshotChange(OnNode):
    new_name = VolumeName(required=True)


class SnapshotElement(Schema):
    pool = fields.String()
    volume = fields.String()
    snapshot = fields.String()
    node = fields.String(metadata=documented("null: every node that has the pool sees it", nullable=True))
    stats = fields.Dict(
        metadata=documented(
            "size and used (bytes), protected, children (clones), created (seconds since 1970)"
        )
    )


@blueprint.get("/storage/ceph/snapshot")
@endpoint(SnapshotFilter, SnapshotElement, many=True)
def list_snapshots(given: Given) -> Any:
    """List snapshots of all volumes, of one pool's, or of one volume."""
    found = list_on_nodes("snapshot.list", "snapshots", given, {"volume": given.get("volume")})
    elements = [snapshot_element(place, snapshot) for place, snapshot in found]
    if given.get("limit"):
        with reading() as session:
            wanted = texts_matching(session, [element["snapshot"] for element in elements], given["limit"])
        elements = [element for element in elements if element["snapshot"] in wanted]
    if not elements:
        raise NotFound("list snapshots", "none matches" if set(given) else "there are none yet")
    return elements


@blueprint.post("/storage/ceph/snapshot")
@endpoint(NewSnapshot, absent=400)
def create_snapshot(given: Given) -> str:
    """Keep the content a volume has now."""
    pool, volume, snapshot = given["pool"], given["volume"], given["snapshot"]
    place = place_of_volume(pool, volume, given.get("node"), f"create snapshot {pool}/{volume}@{snapshot}")
    place.ask("snapshot.create", {"volume": volume, "snapshot": snapshot})
    return f'Created snapshot "{pool}/{volume}@{snapshot}".'


@blueprint.put("/storage/ceph/snapshot/<pool>/<volume>/<snapshot>")
@endpoint(SnapshotChange, lenient=True, absent=400)
def rename_snapshot(given: Given, pool: str, volume: str, snapshot: str) -> str:
    """Give a snapshot another name."""
    new_name = given.get("new_name")
    _change(given, pool, volume, snapshot, "rename", {"new_name": new_name})
    return f'Renamed snapshot "{pool}/{volume}@{snapshot}" to "{new_name}".'


@blueprint.delete("/storage/ceph/snapshot/<pool>/<volume>/<snapshot>")
@endpoint(OnNode, lenient=True, absent=400)
def delete_snapshot(given: Given, pool: str, volume: str, snapshot: str) -> str:
    """Delete a snapshot; its volume stays as it is."""
    _change(given, pool, volume, snapshot, "delete", timeout_s=SLOW_TIMEOUT_S)
    return f'Deleted snapshot "{pool}/{volume}@{snapshot}".'


@blueprint.post("/storage/ceph/snapshot/<pool>/<volume>/<snapshot>/rollback")
@endpoint(OnNode, lenient=True, absent=400)
def rollback_snapshot(given: Given, pool: str, volume: str, snapshot: str) -> str:
    """Give a volume the content of its snapshot again; what was written since is lost."""
    what = f"roll back volume {pool}/{volume} to snapshot {snapshot}"
    place = find_place(given, pool, volume, "roll back", snapshot=snapshot)
    require_unused(place, volume, what)
    place.ask("snapshot.rollback", {"volume": volume, "snapshot": snapshot}, SLOW_TIMEOUT_S)
    return f'Rolled back volume "{pool}/{volume}" to snapshot "{snapshot}".'


@blueprint.post("/storage/ceph/snapshot/<pool>/<volume>/<snapshot>/protect")
@endpoint(OnNode, lenient=True, absent=400)
def protect_snapshot(given: Given, pool: str, volume: str, snapshot: str) -> str:
    """Allow clones of a snapshot, and refuse its deletion."""
    _change(given, pool, volume, snapshot, "protect")
    return f'Protected snapshot "{pool}/{volume}@{snapshot}".'


@blueprint.post("/storage/ceph/snapshot/<pool>/<volume>/<snapshot>/unprotect")
@endpoint(OnNode, lenient=True, absent=400)
def unprotect_snapshot(given: Given, pool: str, volume: str, snapshot: str) -> str:
    """Allow the deletion of a snapshot that has no clones."""
    _change(given, pool, volume, snapshot, "unprotect")
    return f'Snapshot "{pool}/{volume}@{snapshot}" is not protected any more.'


def _change(
    given: Given,
    pool: str,
    volume: str,
    snapshot: str,
    verb: str,
    more: dict[str, Any] | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> None:
    place = find_place(given, pool, volume, f"{verb} a snapshot of", snapshot=snapshot)
    if snapshot == IMAGE_SNAPSHOT:
        require_no_image(place, volume, f"{verb} snapshot {pool}/{volume}@{snapshot}")
    place.ask(f"snapshot.{verb}", {"volume": volume, "snapshot": snapshot, **(more or {})}, timeout_s)


def snapshot_element(place: Place, snapshot: dict[str, Any]) -> dict[str, Any]:
    names = {key: snapshot[key] for key in ("pool", "volume", "snapshot")}
    stats = {key: value for key, value in snapshot.items() if key not in names}
    return {**names, "node": place.shown_node, "stats": stats}
