"""Profiles: templates, userdata, a script and its arguments under one name."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvcapid import audit, script_arguments
from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Choice, Filter, Name, NoParameters, Texts, documented
from pvcapid.look_up import get_row, list_rows
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvccommon.models import (
    Image,
    ImageKind,
    ImageState,
    NetworkTemplate,
    Profile,
    Script,
    StorageTemplate,
    SystemTemplate,
    Userdata,
)

blueprint = Blueprint("profiles", __name__)
NOUN = "profile"
UNSET = "N/A"  # what existing clients show for a part a profile does not have
PARTS: dict[str, Any] = {
    "system_template": SystemTemplate,
    "network_template": NetworkTemplate,
    "storage_template": StorageTemplate,
    "userdata": Userdata,
    "script": Script,
    "image": Image,
}
OVA = "ova"  # existing clients' word for an image of this kind, and for the type of a profile that has one


class ProfileChange(Schema):
    system_template = Name(metadata=documented("name of a system template"))
    network_template = Name(allow_none=True, metadata=documented("name of a network template"))
    storage_template = Name(allow_none=True, metadata=documented("name of a storage template"))
    userdata = Name(allow_none=True, metadata=documented("name of a userdata document"))
    script = Name(metadata=documented("name of a builder script"))
    image = Name(allow_none=True, metadata=documented("name of an image the disks start from"))
    arg = Texts(metadata=documented("arguments of the script as key=value; replaces all earlier ones"))


class ProfileParameters(ProfileChange):
    name = Name(required=True)
    profile_type = Choice(("provisioner", "ova"), required=True)
    system_template = Name(required=True, metadata=documented("name of a system template"))
    script = Name(required=True, metadata=documented("name of a builder script"))
    ova = Name(allow_none=True, metadata=documented("the same as `image`, for one of kind ova"))


class ProfileElement(Schema):
    id = fields.Integer()
    name = fields.String()
    type = fields.String()
    system_template = fields.String()
    network_template = fields.String()
    storage_template = fields.String()
    userdata = fields.String()
    script = fields.String()
    ova = fields.String(metadata=documented("the image, if it is of kind ova"))
    image = fields.String()
    arguments = fields.List(fields.String(), metadata=documented("secret values as <redacted>"))


@blueprint.get("/provisioner/profile")
@endpoint(Filter, ProfileElement, many=True)
def list_profiles(given: Given) -> Any:
    """List profiles."""
    with reading() as session:
        return [_element(profile) for profile in list_rows(session, Profile, given.get("limit"), NOUN)]


@blueprint.get("/provisioner/profile/<name>")
@endpoint(NoParameters, ProfileElement, many=True)
def get_profile(given: Given, name: str) -> Any:
    """Show a profile."""
    with reading() as session:
        return [_element(get_row(session, Profile, name, NOUN))]


@blueprint.post("/provisioner/profile")
@endpoint(ProfileParameters, lenient=True)
def create_profile(given: Given) -> str:
    """Add a profile."""
    what = f"add {NOUN} {given.get('name', '')}".strip()
    if given.get(OVA):
        given.setdefault("image", given[OVA])
    with changing(what) as session:
        parts = _find_parts(session, given)
        _check_image(given, parts.get("image"))
        profile = Profile(name=given.get("name"), profile_type=given.get("profile_type"), **parts)
        profile.arguments = _new_arguments(given, parts.get("script"), profile)
        given.require_ok(what)
        session.add(profile)
    return f'Added profile "{given["name"]}".'


@blueprint.put("/provisioner/profile/<name>")
@endpoint(ProfileChange, absent=400, lenient=True)
def modify_profile(given: Given, name: str) -> str:
    """Change a profile; what is absent stays, an empty text takes a part away."""
    what = f"change {NOUN} {name}"
    with changing(what) as session:
        profile = get_row(session, Profile, name, NOUN, lock=True)
        parts = _find_parts(session, given)
        arguments = _new_arguments(given, parts.get("script", profile.script), profile)
        given.require_ok(what)
        profile.arguments = arguments
        for part, row in parts.items():
            setattr(profile, part, row)
    return f'Changed profile "{name}".'


@blueprint.delete("/provisioner/profile/<name>")
@endpoint(absent=400)
def delete_profile(given: Given, name: str) -> str:
    """Remove a profile; VMs made from it stay."""
    with changing(f"remove {NOUN} {name}") as session:
        session.delete(get_row(session, Profile, name, NOUN, lock=True))
    return f'Removed profile "{name}".'


def _find_parts(session: Session, given: Given) -> dict[str, Any]:
    """Rows of the parts that are given, None for those taken away; unknown names become problems.

    The rows are locked against removal until the profile refers to them.
    """
    found: dict[str, Any] = {}
    for part, model in PARTS.items():
        if part not in given:
            continue
        if given[part] is None:
            found[part] = None
            continue
        statement = select(model).where(model.name == given[part]).with_for_update(read=True, key_share=True)
        row = session.execute(statement).scalar_one_or_none()
        if row is None:
            given.add(part, f"there is no {part.replace('_', ' ')} {given[part]!r}")
        else:
            found[part] = row
    _refuse_failed(given, found.get("image"))
    return found


def _refuse_failed(given: Given, image: Image | None) -> None:
    """One that is still imported may become what the profile needs; a failed one does not."""
    if image is not None and image.state == ImageState.FAILED:
        why = (image.error or {}).get("why") or "see it"
        hint = f"upload or import it again; see: pvc provisioner image show {image.name}"
        given.add("image", f"image {image.name} cannot be used: it has failed: {why}", hint)


def _check_image(given: Given, image: Image | None) -> None:
    """A profile of type ova has an image of that kind."""
    if (given.get("profile_type") == OVA or given.get(OVA)) and (
        image is None or image.kind != ImageKind.OVA
    ):
        given.add(OVA, "a profile of type ova needs an image of kind ova")


def _new_arguments(given: Given, script: Script | None, profile: Profile) -> list[str]:
    """The arguments the profile shall have, checked against its script; problems go to `given`."""
    if script is None:
        return []
    declared = script_arguments.declaration_of(script)
    kept = list(profile.arguments or [])
    if "arg" in given:
        before = script_arguments.declaration_of(profile.script) if profile.script else None
        audit.show_arguments(script_arguments.without_secrets(declared, given["arg"]))
        arguments = script_arguments.restore_secrets(declared, before, given, kept)
    else:
        arguments = kept
        if profile.script is not None and script is not profile.script:
            script_arguments.keep_secret(
                declared, script_arguments.declaration_of(profile.script), given, kept
            )
    given.problems.extend(script_arguments.problems(declared, arguments))
    return arguments


def _element(profile: Profile) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": profile.id,
        "name": profile.name,
        "type": profile.profile_type,
    }
    for part in PARTS:
        row = getattr(profile, part)
        shown[part] = row.name if row is not None else UNSET
    image = profile.image
    shown[OVA] = image.name if image is not None and image.kind == ImageKind.OVA else UNSET
    shown["arguments"] = script_arguments.masked(profile.script, profile.arguments)
    return shown
