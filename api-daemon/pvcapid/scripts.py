"""Builder scripts. What one declares is read from its source at upload; nothing of it is run here."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Filter, NoParameters
from pvcapid.look_up import get_row, list_rows, refuse_if_used
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvcapid.userdata import ChangedDocument, NewDocument
from pvccommon.declarations import read_declaration
from pvccommon.errors import PvcError
from pvccommon.models import Profile, Script

blueprint = Blueprint("scripts", __name__)
NOUN = "script"
DECLARED = ("summary", "description", "api_version", "legacy", "cacheable", "sha256", "arguments")


class ArgumentElement(Schema):
    name = fields.String()
    type = fields.String()
    default = fields.Raw(allow_none=True)
    required = fields.Boolean()
    choices = fields.List(fields.Raw())
    pattern = fields.String(allow_none=True)
    minimum = fields.Integer(allow_none=True)
    maximum = fields.Integer(allow_none=True)
    help = fields.String()
    secret = fields.Boolean()


class ScriptElement(Schema):
    id = fields.Integer()
    name = fields.String()
    script = fields.String()
    summary = fields.String()
    description = fields.String()
    api_version = fields.Integer(allow_none=True)
    legacy = fields.Boolean()
    cacheable = fields.Boolean()
    sha256 = fields.String()
    arguments = fields.List(fields.Nested(ArgumentElement))


@blueprint.get("/provisioner/script")
@endpoint(Filter, ScriptElement, many=True)
def list_scripts(given: Given) -> Any:
    """List builder scripts."""
    with reading() as session:
        return [_element(row) for row in list_rows(session, Script, given.get("limit"), NOUN)]


@blueprint.get("/provisioner/script/<name>")
@endpoint(NoParameters, ScriptElement, many=True)
def get_script(given: Given, name: str) -> Any:
    """Show a builder script and what it declares."""
    with reading() as session:
        return [_element(get_row(session, Script, name, NOUN))]


@blueprint.post("/provisioner/script")
@endpoint(NewDocument, lenient=True)
def create_script(given: Given) -> str:
    """Add a builder script."""
    declaration = _declaration(given)
    given.require_ok(f"add {NOUN} {given.get('name', '')}".strip())
    with changing(f"add {NOUN} {given['name']}") as session:
        session.add(Script(name=given["name"], script=given["data"], declaration=declaration))
    return f'Added script "{given["name"]}".'


@blueprint.put("/provisioner/script/<name>")
@endpoint(ChangedDocument, absent=400, lenient=True)
def modify_script(given: Given, name: str) -> str:
    """Replace a builder script; builds under way keep theirs."""
    declaration = _declaration(given)
    given.require_ok(f"change {NOUN} {name}")
    with changing(f"change {NOUN} {name}") as session:
        row = get_row(session, Script, name, NOUN, lock=True)
        row.script, row.declaration = given["data"], declaration
    return f'Changed script "{name}".'


@blueprint.delete("/provisioner/script/<name>")
@endpoint(absent=400)
def delete_script(given: Given, name: str) -> str:
    """Remove a builder script that no profile uses."""
    what = f"remove {NOUN} {name}"
    with changing(what) as session:
        script = get_row(session, Script, name, NOUN, lock=True)
        users = select(Profile.name).where(Profile.script_id == script.id).order_by(Profile.name)
        refuse_if_used(what, session.execute(users).scalars().all())
        session.delete(script)
    return f'Removed script "{name}".'


def _declaration(given: Given) -> dict[str, Any]:
    """What the script declares; what is wrong with it becomes problems of the request."""
    if "data" not in given:
        return {}
    try:
        return read_declaration(given["data"]).to_dict()
    except PvcError as exc:
        given.problems.extend(exc.problems)
        if not exc.problems:
            given.add("data", exc.message)
        return {}


def _element(row: Script) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "script": row.script} | {
        key: row.declaration.get(key) for key in DECLARED
    }
