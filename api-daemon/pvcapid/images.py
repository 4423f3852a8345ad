"""Images: what disks of VMs start from. Nodes store them; uploads in chunks are in image_uploads.py."""

from collections.abc import Iterable
from typing import Any

from flask import Blueprint, request
from marshmallow import Schema, fields
from sqlalchemy import cast, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import (
    Choice,
    Document,
    Filter,
    Name,
    NodeName,
    NoParameters,
    PoolName,
    Text,
    Whole,
    documented,
)
from pvcapid.look_up import get_row, list_rows
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvcapid.sizes import MOST_BYTES
from pvcapid.storage_nodes import SLOW_TIMEOUT_S, Place, all_places, place_for_new
from pvcapid.uploaded_file import UploadedFile
from pvcapid.volume_content import patient_with_caller, send_file
from pvccommon import names
from pvccommon.errors import Exists, NotFound, PvcError, WrongState
from pvccommon.images.decoder import hardware_document
from pvccommon.images.fetcher import check_url
from pvccommon.images.hardware import choose_system, offer_hardware
from pvccommon.images.ovf import parse_ovf
from pvccommon.images.ovf_model import Ovf
from pvccommon.models import ACTIVE_STATES, Build, Image, ImageKind, ImageState, Profile, Vm, one_of

blueprint = Blueprint("images", __name__)
NOUN = "image"
GIB = 1024**3
FORMATS = {
    "disk": ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"),
    "iso": ("iso",),
    "ova": ("ova",),
}
# Words that stand for something else in the place of an image's name.
RESERVED = ("upload", "plan")
BAD_NAME = "must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
SEE = "see: pvc provisioner image list"


class ImageContent(Schema):
    """What every way to make an image needs."""

    kind = Choice(tuple(FORMATS), required=True)
    format = Choice(
        tuple(dict.fromkeys(form for forms in FORMATS.values() for form in forms)),
        required=True,
        metadata=documented("what the file is; never guessed"),
    )
    pool = PoolName(required=True)
    node = NodeName(allow_none=True, metadata=documented("the node, for a pool that is local to its nodes"))
    sha256 = Text(longest=64, allow_none=True, metadata=documented("of the file, 64 hexadecimal digits"))
    system = Text(
        longest=255,
        allow_none=True,
        metadata=documented("id or name of the one to take of an OVA of several"),
    )


class FileParameters(ImageContent):
    file_size = Whole(1, MOST_BYTES, required=True, metadata=documented("bytes of the file"))


class ImportParameters(ImageContent):
    url = Text(longest=4096, required=True, metadata=documented("http:// or https://, which a node fetches"))
    sha256 = Text(longest=64, required=True, metadata=documented("of the file, 64 hexadecimal digits"))


class NewName(Schema):
    new_name = Name(required=True)


class OvfDocument(Schema):
    data = Document(required=True, metadata=documented("an OVF document"))
    system = Text(
        longest=255, allow_none=True, metadata=documented("id or name of the one to show of several")
    )


class ImageElement(Schema):
    name = fields.String()
    kind = fields.String(metadata=documented("disk, iso or ova"))
    state = fields.String(metadata=documented("importing, ready or failed"))
    pool = fields.String()
    node = fields.String(metadata=documented("null: every node that has the pool sees it", nullable=True))
    format = fields.String(metadata=documented("of the file it was made from"))
    source = fields.String(metadata=documented("`upload`, or the URL it was fetched from"))
    size_bytes = fields.Integer(metadata=documented("of that file", nullable=True))
    sha256 = fields.String(metadata=documented("of that file", nullable=True))
    percent = fields.Float(metadata=documented("of the file, while it is imported", nullable=True))
    created = fields.String()
    finished = fields.String(metadata=documented("null while it is imported", nullable=True))
    error = fields.Dict(metadata=documented("kind, what, why, hint of a failed import", nullable=True))
    warnings = fields.List(fields.String())
    verified = fields.Dict(
        metadata=documented("files of an OVA that its manifest proved, with the algorithm")
    )
    hardware = fields.Dict(metadata=documented("what an OVA asks for, as it is offered here", nullable=True))
    volumes = fields.List(
        fields.Dict(
            metadata=documented("pool, volume_name, volume_format, disk_id, disk_size_gb, size_bytes")
        )
    )
    used_by = fields.Dict(metadata=documented("profiles and vms, by name"))


class StartedImport(Schema):
    message = fields.String()
    image = fields.String(metadata=documented("its name"))


class PlanElement(Schema):
    systems = fields.List(fields.Dict(metadata=documented("id and name")))
    hardware = fields.Dict(
        metadata=documented("null when one of several systems must be named", nullable=True)
    )
    disks = fields.List(fields.Dict(metadata=documented("disk_id, size_bytes, file, format")))
    nics = fields.List(fields.Dict(metadata=documented("network, model, mac")))
    firmware = fields.String(metadata=documented("bios or uefi", nullable=True))
    warnings = fields.List(fields.String())


@blueprint.get("/provisioner/image")
@endpoint(Filter, ImageElement, many=True)
def list_images(given: Given) -> Any:
    """List images."""
    with reading() as session:
        images = list_rows(session, Image, given.get("limit"), NOUN)
        return image_elements(session, images)


@blueprint.get("/provisioner/image/<name>")
@endpoint(NoParameters, ImageElement, many=True)
def get_image(given: Given, name: str) -> Any:
    """Show an image."""
    with reading() as session:
        return image_elements(session, [get_row(session, Image, name, NOUN)])


@blueprint.put("/provisioner/image/<name>")
@endpoint(NewName, absent=400, lenient=True)
def rename_image(given: Given, name: str) -> str:
    """Give an image another name; profiles and VMs keep it."""
    what = f"rename image {name}"
    if given.get("new_name") in RESERVED:
        given.add("new_name", f"{given['new_name']!r} is no name for an image")
    given.require_ok(what)
    with changing(what) as session:
        get_row(session, Image, name, NOUN, lock=True).name = given["new_name"]
    return f'Renamed image "{name}" to "{given["new_name"]}".'


@blueprint.delete("/provisioner/image/<name>")
@endpoint(absent=400)
def delete_image(given: Given, name: str) -> str:
    """Remove an image that nothing uses; an import under way is ended by it."""
    remove(name, f"remove image {name}", with_parts=False)
    return f'Removed image "{name}".'


@blueprint.post("/provisioner/image/<name>")
@endpoint(FileParameters, lenient=True, absent=400, upload=True)
def upload_image(given: Given, name: str) -> str:
    """Make an image from a file in one request; the answer comes when it is ready."""
    what = f"upload image {name}"
    with patient_with_caller():
        place = checked_place(given, name, what)
        receive_file(place, name, given, given["file_size"], what)
    return f'Made image "{name}" of {given["file_size"]} bytes.'


@blueprint.post("/provisioner/image/<name>/import")
@endpoint(ImportParameters, StartedImport, lenient=True, absent=400, status=202)
def import_image(given: Given, name: str) -> Any:
    """Have a node fetch an image by URL; GET tells how far it is and what became of it."""
    what = f"import image {name}"
    if "url" in given:
        try:
            check_url(given["url"])
        except PvcError as exc:
            given.add("url", exc.why)
    place = checked_place(given, name, what)
    place.ask("image.import", {**node_arguments(name, given), "url": given["url"]})
    return {"message": f'Importing image "{name}" from {given["url"]}.', "image": name}


@blueprint.post("/provisioner/image/plan")
@endpoint(OvfDocument, PlanElement, dry_run=True)
def plan_image(given: Given) -> Any:
    """Show what an OVF document asks for and what it would get here; nothing is written."""
    ovf = parse_ovf(given["data"].encode())
    systems = [{"id": system.id, "name": system.name} for system in ovf.systems]
    if len(systems) > 1 and not given.get("system"):
        choose = f"it describes {len(systems)} systems: name the one to take"
        return _plan(systems, ovf, warnings=[*ovf.warnings, choose])
    offer = offer_hardware(choose_system(ovf, given.get("system")))
    found = {disk.id: disk for disk in ovf.disks}
    disks = [
        {
            "disk_id": disk.disk_id,
            "size_bytes": disk.size_bytes,
            "file": disk.file,
            "format": found[disk.ovf_disk].format if disk.ovf_disk in found else None,
        }
        for disk in offer.disks
    ]
    warnings = list(dict.fromkeys((*ovf.warnings, *offer.warnings)))
    return _plan(systems, ovf, hardware=hardware_document(offer), disks=disks, warnings=warnings)


def _plan(systems: list[Any], ovf: Ovf, *, warnings: list[str], hardware: Any = None, disks: Any = ()) -> Any:
    return {
        "systems": systems,
        "hardware": hardware,
        "disks": list(disks),
        "nics": hardware["nics"] if hardware else [],
        "firmware": hardware["firmware"] if hardware else None,
        "warnings": warnings,
    }


# ---- what the ways to make an image share


def checked_place(given: Given, name: str | None, what: str) -> Place:
    """Where the image goes, once everything about the request is known to be right."""
    check_content(given)
    if name is not None and (not names.is_object_name(name) or name in RESERVED):
        given.add("name", f"{name!r} is no name for an image" if name in RESERVED else BAD_NAME)
    place = None
    if "pool" in given:
        try:
            place = place_for_new(given["pool"], given.get("node"), what)
        except NotFound as exc:
            given.add("node" if exc.what.startswith("find node") else "pool", f"{exc.why} ({exc.hint})")
    if not given.problems and name is not None:
        refuse_taken(name, what)
    given.require_ok(what)
    assert place is not None  # otherwise there is a problem
    return place


def check_content(given: Given) -> None:
    """Problems that no single parameter shows go to `given`."""
    kind, form, sha256 = given.get("kind"), given.get("format"), given.get("sha256")
    if kind and form and form not in FORMATS[kind]:
        given.add("format", f"{form} is none of kind {kind}: {', '.join(FORMATS[kind])}")
    if sha256 and (len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef")):
        given.add("sha256", "must be 64 hexadecimal digits")
    if given.get("system") and kind not in (None, ImageKind.OVA.value):
        given.add("system", "is for kind ova only")


def refuse_taken(name: str, what: str) -> None:
    """Before anything is sent; the node's own transaction decides."""
    with reading() as session:
        query = select(Image.state).where(Image.name == name, Image.state != ImageState.FAILED.value)
        if session.execute(query).first():
            raise Exists(what, "there is an image of this name", f"see: pvc provisioner image show {name}")


def node_arguments(name: str, given: Given) -> dict[str, Any]:
    """What the node needs to know of an image, besides its length or URL."""
    sha256 = given.get("sha256")
    return {
        "name": name,
        "kind": given["kind"],
        "format": given["format"],
        "sha256": sha256.lower() if sha256 else None,
        "system": given.get("system"),
    }


def receive_file(place: Place, name: str, given: Given, size_bytes: int, what: str) -> None:
    """Send the file of this request to the node; the image is ready afterwards."""
    file = UploadedFile(request)
    answer = place.ask("image.upload", {**node_arguments(name, given), "size_bytes": size_bytes})
    send_file(answer["offer"], file, size_bytes, what)


def remove(name: str, what: str, *, with_parts: bool, kind: ImageKind | None = None) -> None:
    """Have a node remove an image. Raises NotFound, WrongState while something uses it."""
    with reading() as session:
        image = get_row(session, Image, name, NOUN)
        if kind is not None and image.kind != kind:
            raise NotFound(what, f"there is no such one of kind {kind.value}", SEE)
        if image.state != ImageState.IMPORTING:
            _refuse_needed(session, image, what)
    place = _home(image, what)
    arguments = {"image_id": image.id, "with_parts": with_parts}
    place.ask("image.remove", arguments, SLOW_TIMEOUT_S)


def _home(image: Image, what: str) -> Place:
    """The node that imports the image while it is alive, else one that reaches it.

    Raises WrongState when the only one that does is not alive.
    """
    try:
        places = all_places(image.node, image.pool)
    except WrongState as exc:
        why = f"only node {image.node} reaches pool {image.pool}, which has its volumes, and does not report"
        then = "it removes it by itself" if image.state == ImageState.IMPORTING else "try again"
        rename = f"pvc provisioner image rename {image.name} OTHER"
        hint = f"when {image.node} runs again, {then}; the name alone is free after: {rename}"
        raise WrongState(what, why, hint) from exc
    owner = (image.owner or "").partition("/")[0]
    if not owner or not places[0].shared:
        return places[0]
    try:
        return next(place for place in all_places(owner, image.pool))
    except (NotFound, WrongState):
        return places[0]


def _refuse_needed(session: Session, image: Image, what: str) -> None:
    """Raises WrongState while a VM has it in its drive, or a build will use it; the node sees clones."""
    volumes = [volume.volume for volume in image.volumes]
    if not volumes:
        return
    vms = sorted(_vms_with_media(session, image.pool, volumes))
    if vms:
        why = f"it is in a drive of VM {', '.join(vms[:20])}"
        raise WrongState(what, why, "it goes from there when the VM first stops")
    planned = or_(
        *(
            cast(Build.plan["volumes"], JSONB).contains([{"pool": image.pool, "source_volume": v}])
            for v in volumes
        ),
        *(cast(Build.plan["cdroms"], JSONB).contains([{"pool": image.pool, "volume": v}]) for v in volumes),
    )
    query = select(Build.id, Build.vm).where(one_of(Build.state, ACTIVE_STATES), planned).limit(1)
    found = session.execute(query).first()
    if found:
        hint = f"wait for its end, or: pvc cluster task cancel {found.id}"
        raise WrongState(what, f"build {found.id} needs it for VM {found.vm}", hint)


# ---- answers


def image_elements(session: Session, images: Iterable[Image]) -> list[dict[str, Any]]:
    listed = list(images)
    by_volume = {(v.pool, v.volume): image.id for image in listed for v in image.volumes}
    profiles: dict[int, list[str]] = {}
    ids = [image.id for image in listed]
    for image_id, name in session.execute(
        select(Profile.image_id, Profile.name).where(one_of_ids(Profile.image_id, ids)).order_by(Profile.name)
    ):
        profiles.setdefault(image_id, []).append(name)
    vms = _vms_by_image(session, by_volume)
    return [_element(image, profiles.get(image.id, []), vms.get(image.id, [])) for image in listed]


def one_of_ids(column: Any, ids: list[int]) -> Any:
    """The condition that a column has one of these numbers (columns are annotated as what they hold)."""
    return column.in_(ids)


def _vms_by_image(session: Session, by_volume: dict[tuple[str, str], int]) -> dict[int, list[str]]:
    """Names of VMs whose build cloned the image's volumes, or whose drives hold them, by image."""
    found: dict[int, set[str]] = {}
    query = select(Vm.name, Vm.media, Build.plan["volumes"]).outerjoin(Build, Build.id == Vm.build)
    for name, media, volumes in session.execute(query):
        used = [(volume["pool"], volume.get("source_volume")) for volume in volumes or ()]
        used += [(cdrom["pool"], cdrom["volume"]) for cdrom in media or ()]
        for key in used:
            if key in by_volume:
                found.setdefault(by_volume[key], set()).add(name)
    return {image_id: sorted(vms) for image_id, vms in found.items()}


def _vms_with_media(session: Session, pool: str, volumes: list[str]) -> set[str]:
    conditions = [cast(Vm.media, JSONB).contains([{"pool": pool, "volume": volume}]) for volume in volumes]
    return set(session.execute(select(Vm.name).where(or_(*conditions))).scalars())


def _element(image: Image, profiles: list[str], vms: list[str]) -> dict[str, Any]:
    document = image.document
    plain = (
        "name",
        "kind",
        "state",
        "pool",
        "node",
        "format",
        "source",
        "size_bytes",
        "sha256",
        "percent",
        "error",
    )
    return {
        **{key: getattr(image, key) for key in plain},
        "created": image.created.isoformat(),
        "finished": image.finished.isoformat() if image.finished else None,
        "warnings": document.get("warnings", []),
        "verified": document.get("verified", {}),
        "hardware": document.get("hardware"),
        "volumes": volume_elements(image),
        "used_by": {"profiles": profiles, "vms": vms},
    }


def volume_elements(image: Image) -> list[dict[str, Any]]:
    """The volumes as existing clients read those of an OVA."""
    return [
        {
            "pool": volume.pool,
            "volume_name": volume.volume,
            "volume_format": "raw",
            "disk_id": volume.disk_id,
            "disk_size_gb": -(-volume.size_bytes // GIB),
            "size_bytes": volume.size_bytes,
        }
        for volume in image.volumes
    ]
