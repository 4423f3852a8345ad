"""OVA images as existing clients know them: with a system template and a profile of their name."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Filter, NodeName, NoParameters, PoolName, Whole, documented
from pvcapid.images import checked_place, receive_file, remove, volume_elements
from pvcapid.look_up import get_row, matching, whole
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvcapid.sizes import MOST_BYTES
from pvcapid.templates_system import DEFAULT_DOWNTIME_MS
from pvcapid.volume_content import patient_with_caller
from pvccommon.errors import NotFound
from pvccommon.models import Image, ImageKind, ImageState, Profile, Script, SystemTemplate

blueprint = Blueprint("ovas", __name__)
NOUN = "OVA image"
OVA = ImageKind.OVA.value
# The script of the profile that is made: the first of these there is.
SCRIPTS = ("ova", "default_ova")
VNC_BIND = "127.0.0.1"


class OvaUpload(Schema):
    pool = PoolName(required=True)
    node = NodeName(allow_none=True, metadata=documented("the node, for a pool that is local to its nodes"))
    ova_size = Whole(1, MOST_BYTES, required=True, metadata=documented("bytes of the file"))


class OvaElement(Schema):
    id = fields.Integer()
    name = fields.String()
    volumes = fields.List(
        fields.Dict(
            metadata=documented("pool, volume_name, volume_format, disk_id, disk_size_gb, size_bytes")
        )
    )


@blueprint.get("/provisioner/ova")
@endpoint(Filter, OvaElement, many=True)
def list_ovas(given: Given) -> Any:
    """List OVA images that are ready."""
    ready = (Image.kind == OVA, Image.state == ImageState.READY.value)
    with reading() as session:
        query = whole(Image).where(matching(Image.name, given.get("limit")), *ready).order_by(Image.name)
        found = session.execute(query).scalars().all()
    if not found:
        raise NotFound(f"list {NOUN}s", "none matches" if given.get("limit") else "there are none yet")
    return [_element(image) for image in found]


@blueprint.get("/provisioner/ova/<name>")
@endpoint(NoParameters, OvaElement, many=True)
def get_ova(given: Given, name: str) -> Any:
    """Show an OVA image."""
    with reading() as session:
        image = get_row(session, Image, name, NOUN)
    if image.kind != OVA:
        raise NotFound(f"find {NOUN} {name}", "there is no such one")
    return [_element(image)]


@blueprint.post("/provisioner/ova/<name>")
@endpoint(OvaUpload, lenient=True, absent=400, upload=True)
def create_ova(given: Given, name: str) -> str:
    """Import an OVA archive, and make a system template and a profile of its name."""
    what = f"import {NOUN} {name}"
    with patient_with_caller():
        given |= {"kind": OVA, "format": OVA}
        with reading() as session:
            _check_parts(session, given, name)
        place = checked_place(given, name, what)
        receive_file(place, name, given, given["ova_size"], what)
    try:
        _make_parts(name, what)
    except BaseException:
        remove(name, what, with_parts=True)
        raise
    return f'Imported OVA image "{name}", with a system template and a profile of its name.'


@blueprint.delete("/provisioner/ova/<name>")
@endpoint(absent=400)
def delete_ova(given: Given, name: str) -> str:
    """Remove an OVA image with its volumes, its profile and its system template."""
    remove(name, f"remove {NOUN} {name}", with_parts=True, kind=ImageKind.OVA)
    return f'Removed OVA image "{name}".'


def _check_parts(session: Session, given: Given, name: str) -> None:
    """What stands against the template and the profile is a problem before anything is sent."""
    if _script(session) is None:
        given.add(
            "script", f"there is no script {' or '.join(SCRIPTS)}: pvc provisioner script install-defaults"
        )
    for model, noun in ((SystemTemplate, "system template"), (Profile, "profile")):
        if session.execute(select(model.id).where(model.name == name)).first():
            given.add("name", f"there is a {noun} {name} already")


def _script(session: Session) -> Script | None:
    for name in SCRIPTS:
        found: Script | None = session.execute(select(Script).where(Script.name == name)).scalar_one_or_none()
        if found is not None:
            return found
    return None


def _make_parts(name: str, what: str) -> None:
    with changing(what) as session:
        image, script = get_row(session, Image, name, NOUN, lock=True), _script(session)
        if script is None:
            raise NotFound(what, "its script has been removed meanwhile")
        hardware = image.document["hardware"]
        template = SystemTemplate(
            name=name,
            vcpu_count=hardware["vcpus"],
            vram_mb=hardware["memory_mib"],
            serial=hardware["serial"],
            vnc=hardware["vnc"],
            vnc_bind=VNC_BIND if hardware["vnc"] else None,
            node_autostart=False,
            migration_max_downtime=DEFAULT_DOWNTIME_MS,
        )
        profile = Profile(name=name, profile_type=OVA, system_template=template, script=script, image=image)
        profile.arguments = []
        session.add(profile)


def _element(image: Image) -> dict[str, Any]:
    return {"id": image.id, "name": image.name, "volumes": volume_elements(image)}
