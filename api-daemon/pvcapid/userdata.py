"""Userdata: cloud-init documents."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Document, Filter, Name, NoParameters, documented
from pvcapid.look_up import get_row, list_rows, refuse_if_used
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvccommon.models import Profile, Userdata

blueprint = Blueprint("userdata", __name__)
NOUN = "userdata document"


class NewDocument(Schema):
    name = Name(required=True)
    data = Document(required=True, metadata=documented("the document"))


class ChangedDocument(Schema):
    # Existing clients repeat the name here; the one in the path counts.
    name = Name(metadata=documented("ignored"))
    data = Document(required=True, metadata=documented("the document"))


class UserdataElement(Schema):
    id = fields.Integer()
    name = fields.String()
    userdata = fields.String()


@blueprint.get("/provisioner/userdata")
@endpoint(Filter, UserdataElement, many=True)
def list_userdata(given: Given) -> Any:
    """List userdata documents."""
    with reading() as session:
        return list_rows(session, Userdata, given.get("limit"), NOUN)


@blueprint.get("/provisioner/userdata/<name>")
@endpoint(NoParameters, UserdataElement, many=True)
def get_userdata(given: Given, name: str) -> Any:
    """Show a userdata document."""
    with reading() as session:
        return [get_row(session, Userdata, name, NOUN)]


@blueprint.post("/provisioner/userdata")
@endpoint(NewDocument)
def create_userdata(given: Given) -> str:
    """Add a userdata document."""
    with changing(f"add {NOUN} {given['name']}") as session:
        session.add(Userdata(name=given["name"], userdata=given["data"]))
    return f'Added userdata document "{given["name"]}".'


@blueprint.put("/provisioner/userdata/<name>")
@endpoint(ChangedDocument, absent=400)
def modify_userdata(given: Given, name: str) -> str:
    """Replace a userdata document; VMs that exist keep theirs."""
    with changing(f"change {NOUN} {name}") as session:
        get_row(session, Userdata, name, NOUN, lock=True).userdata = given["data"]
    return f'Changed userdata document "{name}".'


@blueprint.delete("/provisioner/userdata/<name>")
@endpoint(absent=400)
def delete_userdata(given: Given, name: str) -> str:
    """Remove a userdata document that no profile uses."""
    what = f"remove {NOUN} {name}"
    with changing(what) as session:
        document = get_row(session, Userdata, name, NOUN, lock=True)
        users = select(Profile.name).where(Profile.userdata_id == document.id).order_by(Profile.name)
        refuse_if_used(what, session.execute(users).scalars().all())
        session.delete(document)
    return f'Removed userdata document "{name}".'
