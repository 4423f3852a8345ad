"""Volumes: looked at and changed by the nodes that have their pools. Their content: volume_content.py."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields

from pvcapid.endpoint import endpoint
from pvcapid.fields import Flag, NodeName, PoolName, Text, VolumeName, documented
from pvcapid.look_up import texts_matching
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvcapid.sizes import Size, size_text
from pvcapid.storage_nodes import (
    SLOW_TIMEOUT_S,
    Place,
    all_places,
    ask_each,
    place_for_new,
    place_of_volume,
)
from pvcapid.volume_users import require_free_name, require_no_image, require_unused
from pvccommon import names
from pvccommon.errors import NotFound, Problem, WrongInput

blueprint = Blueprint("volumes", __name__)
BAD_NAME = "must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"


class OnNode(Schema):
    node = NodeName(metadata=documented("the node, for a pool that is local to its nodes"))


class VolumeFilter(OnNode):
    limit = Text(longest=128, metadata=documented("regular expression on the name"))
    pool = PoolName(metadata=documented("only volumes of this pool"))


class NewVolume(OnNode):
    volume = VolumeName(required=True)
    pool = PoolName(required=True)
    size = Size(required=True, metadata=documented("bytes, or with a binary unit: 4G"))
    force = Flag(load_default=False, metadata=documented("also when the pool becomes more than 80 % full"))


class VolumeChange(OnNode):
    new_size = Size(metadata=documented("bytes, or with a binary unit: 4G"))
    new_name = VolumeName()
    force = Flag(load_default=False, metadata=documented("also when the pool becomes more than 80 % full"))


class CloneParameters(OnNode):
    new_volume = VolumeName(required=True)
    snapshot = VolumeName(metadata=documented("clone this protected snapshot, not the volume as it is now"))
    force = Flag(load_default=False, metadata=documented("also when the pool is more than 80 % full"))
    force_flag = Flag(load_default=False, metadata=documented("the same, as existing clients send it"))


class VolumeElement(Schema):
    name = fields.String()
    pool = fields.String()
    node = fields.String(metadata=documented("null: every node that has the pool sees it", nullable=True))
    stats = fields.Dict(
        metadata=documented(
            "size (text such as 4G), objects, order, format, features, size_bytes, used_bytes, parent"
        )
    )


@blueprint.get("/storage/ceph/volume")
@endpoint(VolumeFilter, VolumeElement, many=True)
def list_volumes(given: Given) -> Any:
    """List volumes of all pools, or of one."""
    found = list_on_nodes("volume.list", "volumes", given, {})
    elements = [volume_element(place, volume) for place, volume in found]
    if given.get("limit"):
        with reading() as session:
            wanted = texts_matching(session, [element["name"] for element in elements], given["limit"])
        elements = [element for element in elements if element["name"] in wanted]
    if not elements:
        raise NotFound("list volumes", "none matches" if set(given) else "there are none yet")
    return elements


@blueprint.get("/storage/ceph/volume/<pool>/<volume>")
@endpoint(OnNode, VolumeElement, many=True)
def get_volume(given: Given, pool: str, volume: str) -> Any:
    """Show a volume."""
    place = find_place(given, pool, volume, "find")
    return [volume_element(place, place.look("volume.get", {"volume": volume})["volume"])]


@blueprint.post("/storage/ceph/volume")
@endpoint(NewVolume, lenient=True, absent=400)
def create_volume(given: Given) -> str:
    """Make a volume that reads as zeros."""
    what = f"create volume {given.get('pool', '?')}/{given.get('volume', '?')}"
    place = checked_place_for_new(given, what)
    name, size_bytes = given["volume"], given["size"]
    require_free_name(place, name, what)
    made = place.ask("volume.create", {"volume": name, "size_bytes": size_bytes, "force": given["force"]})
    return f'Created volume "{place.pool}/{name}" of {size_text(made["volume"]["size_bytes"])}.'


@blueprint.put("/storage/ceph/volume/<pool>/<volume>")
@endpoint(VolumeChange, lenient=True, absent=400)
def modify_volume(given: Given, pool: str, volume: str) -> str:
    """Let a volume grow, or give it another name."""
    stated = {problem.path for problem in given.problems} | set(given)
    both = {"new_size", "new_name"} <= stated
    if both or not {"new_size", "new_name"} & stated:
        given.add("new_size", f"{'only one' if both else 'one'} of new_size and new_name is needed")
    place = find_place(given, pool, volume, "change")
    if "new_size" in given:
        require_no_image(place, volume, f"resize volume {pool}/{volume}")
        arguments = {"volume": volume, "size_bytes": given["new_size"], "force": given["force"]}
        made = place.ask("volume.resize", arguments)["volume"]
        return f'Resized volume "{pool}/{volume}" to {size_text(made["size_bytes"])}.'
    what = f"rename volume {pool}/{volume}"
    require_unused(place, volume, what)
    require_free_name(place, given["new_name"], what)
    place.ask("volume.rename", {"volume": volume, "new_name": given["new_name"]})
    return f'Renamed volume "{pool}/{volume}" to "{given["new_name"]}".'


@blueprint.delete("/storage/ceph/volume/<pool>/<volume>")
@endpoint(OnNode, lenient=True, absent=400)
def delete_volume(given: Given, pool: str, volume: str) -> str:
    """Delete a volume with its snapshots."""
    place = find_place(given, pool, volume, "delete")
    require_unused(place, volume, f"delete volume {pool}/{volume}")
    place.ask("volume.delete", {"volume": volume}, SLOW_TIMEOUT_S)
    return f'Deleted volume "{pool}/{volume}".'


@blueprint.post("/storage/ceph/volume/<pool>/<volume>/clone")
@endpoint(CloneParameters, lenient=True, absent=400)
def clone_volume(given: Given, pool: str, volume: str) -> str:
    """Make a copy-on-write clone of a volume as it is now, or of a protected snapshot."""
    place, new = find_place(given, pool, volume, "clone"), given["new_volume"]
    require_free_name(place, new, f"clone volume {pool}/{volume} as {new}")
    force = given["force"] or given["force_flag"]
    arguments = {"new_volume": new, "snapshot": given.get("snapshot"), "force": force}
    place.ask("volume.clone", {"volume": volume, **arguments})
    source = f"{volume}@{given['snapshot']}" if "snapshot" in given else volume
    return f'Cloned volume "{pool}/{source}" as "{new}".'


@blueprint.post("/storage/ceph/volume/<pool>/<volume>/flatten")
@endpoint(OnNode, lenient=True, absent=400)
def flatten_volume(given: Given, pool: str, volume: str) -> str:
    """Copy what a clone shares with its parent, so that it stands alone."""
    place = find_place(given, pool, volume, "flatten")
    place.ask("volume.flatten", {"volume": volume}, SLOW_TIMEOUT_S)
    return f'Flattened volume "{pool}/{volume}".'


def find_place(given: Given, pool: str, volume: str, verb: str, **others: str) -> Place:
    """Where the volume of a path is, once everything about the request is known to be right.

    `others` are more names that stand in the path, by what they name.
    """
    what = f"{verb} volume {pool}/{volume}"
    require_names(given, what, volume=volume, **others)
    return place_of_volume(pool, volume, given.get("node"), what)


def require_names(given: Given, what: str, **found: str) -> None:
    """Raises WrongInput with every problem of the parameters and of the names in the path."""
    for kind, name in found.items():
        if not names.VOLUME_NAME.fullmatch(name):
            given.add(kind, BAD_NAME)
    given.require_ok(what)


def checked_place_for_new(given: Given, what: str) -> Place:
    """Where something new of `given["pool"]` goes; an unknown pool is told with all other problems."""
    try:
        place = place_for_new(given["pool"], given.get("node"), what) if "pool" in given else None
    except NotFound as exc:
        given.add("node" if exc.what.startswith("find node") else "pool", f"{exc.why} ({exc.hint})")
        place = None
    given.require_ok(what)
    assert place is not None  # otherwise there is a problem
    return place


def list_on_nodes(
    verb: str, key: str, given: Given, arguments: dict[str, Any]
) -> list[tuple[Place, dict[str, Any]]]:
    """What all nodes that are asked list of their pools, each with where it is."""
    try:
        places = all_places(given.get("node"), given.get("pool"))
    except NotFound as exc:
        path = "node" if exc.what.startswith("find node") else "pool"
        raise WrongInput(f"list {key}", hint=exc.hint, problems=[Problem(path, exc.why)]) from exc
    answers = ask_each(places, verb, lambda place: {"pools": [place.pool], **arguments})
    return [(place, found) for place, answer in answers for found in answer[key]]


def volume_element(place: Place, volume: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: value for key, value in volume.items() if key not in ("pool", "name")}
    stats = {"size": size_text(volume["size_bytes"]), **numbers}
    return {"name": volume["name"], "pool": place.pool, "node": place.shown_node, "stats": stats}
