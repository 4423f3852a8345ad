"""System templates: CPUs, memory, consoles and placement of a VM."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import (
    MIGRATION_METHODS,
    SELECTORS,
    Address,
    Choice,
    Filter,
    Flag,
    Name,
    NodeList,
    NoParameters,
    Whole,
    documented,
)
from pvcapid.look_up import get_row, list_rows, refuse_if_used
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvccommon.models import Profile, SystemTemplate

blueprint = Blueprint("templates_system", __name__)
NOUN = "system template"
MAX_VCPUS = 1024
MIN_VRAM_MB, MAX_VRAM_MB = 16, 16 * 1024 * 1024
MAX_DOWNTIME_MS = 3_600_000
DEFAULT_DOWNTIME_MS = 300

# Existing clients send `vcpus` and `vram`, and read `vcpu_count` and `vram_mb`.
COLUMNS = {"vcpus": "vcpu_count", "vram": "vram_mb"}


class SystemTemplateChange(Schema):
    vcpus = Whole(1, MAX_VCPUS, metadata=documented("virtual CPUs"))
    vram = Whole(MIN_VRAM_MB, MAX_VRAM_MB, metadata=documented("memory in MiB"))
    serial = Flag(metadata=documented("whether there is a serial console"))
    vnc = Flag(metadata=documented("whether there is a VNC console"))
    vnc_bind = Address(allow_none=True, metadata=documented("where VNC listens; loopback when unset"))
    node_limit = NodeList(allow_none=True, metadata=documented("nodes the VM may run on, with commas"))
    node_selector = Choice(SELECTORS, allow_none=True, metadata=documented("how a node is chosen"))
    node_autostart = Flag(metadata=documented("start with the node"))
    migration_method = Choice(MIGRATION_METHODS, allow_none=True)
    migration_max_downtime = Whole(0, MAX_DOWNTIME_MS, metadata=documented("milliseconds"))


class SystemTemplateParameters(SystemTemplateChange):
    name = Name(required=True)
    vcpus = Whole(1, MAX_VCPUS, required=True, metadata=documented("virtual CPUs"))
    vram = Whole(MIN_VRAM_MB, MAX_VRAM_MB, required=True, metadata=documented("memory in MiB"))
    serial = Flag(required=True, metadata=documented("whether there is a serial console"))
    vnc = Flag(required=True, metadata=documented("whether there is a VNC console"))


class SystemTemplateElement(Schema):
    id = fields.Integer()
    name = fields.String()
    vcpu_count = fields.Integer()
    vram_mb = fields.Integer()
    serial = fields.Boolean()
    vnc = fields.Boolean()
    vnc_bind = fields.String(allow_none=True)
    node_limit = fields.String(allow_none=True)
    node_selector = fields.String(allow_none=True)
    node_autostart = fields.Boolean()
    migration_method = fields.String(allow_none=True)
    migration_max_downtime = fields.Integer()
    ova = fields.Constant(None, metadata=documented("OVA images are not supported yet", nullable=True))


@blueprint.get("/provisioner/template/system")
@endpoint(Filter, SystemTemplateElement, many=True)
def list_system_templates(given: Given) -> Any:
    """List system templates."""
    with reading() as session:
        return list_rows(session, SystemTemplate, given.get("limit"), NOUN)


@blueprint.get("/provisioner/template/system/<name>")
@endpoint(NoParameters, SystemTemplateElement, many=True)
def get_system_template(given: Given, name: str) -> Any:
    """Show a system template."""
    with reading() as session:
        return [get_row(session, SystemTemplate, name, NOUN)]


@blueprint.post("/provisioner/template/system")
@endpoint(SystemTemplateParameters)
def create_system_template(given: Given) -> str:
    """Add a system template."""
    given.setdefault("migration_max_downtime", DEFAULT_DOWNTIME_MS)
    with changing(f"add {NOUN} {given['name']}") as session:
        template = SystemTemplate()
        _apply(template, given)
        session.add(template)
    return f'Added system template "{given["name"]}".'


@blueprint.put("/provisioner/template/system/<name>")
@endpoint(SystemTemplateChange)
def modify_system_template(given: Given, name: str) -> str:
    """Change a system template; what is absent stays."""
    with changing(f"change {NOUN} {name}") as session:
        _apply(get_row(session, SystemTemplate, name, NOUN, lock=True), given)
    return f'Changed system template "{name}".'


@blueprint.delete("/provisioner/template/system/<name>")
@endpoint(absent=400)
def delete_system_template(given: Given, name: str) -> str:
    """Remove a system template that no profile uses."""
    what = f"remove {NOUN} {name}"
    with changing(what) as session:
        template = get_row(session, SystemTemplate, name, NOUN, lock=True)
        users = select(Profile.name).where(Profile.system_template_id == template.id).order_by(Profile.name)
        refuse_if_used(what, session.execute(users).scalars().all())
        session.delete(template)
    return f'Removed system template "{name}".'


def _apply(template: SystemTemplate, given: Given) -> None:
    for parameter, value in given.items():
        setattr(template, COLUMNS.get(parameter, parameter), value)
    if template.node_selector == "none":
        template.node_selector = None
    if not template.vnc:
        template.vnc_bind = None
