"""Network templates: the networks of a VM, in the order of its NICs."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Filter, Flag, MacTemplate, Name, NoParameters, documented
from pvcapid.look_up import get_row, list_rows, refuse_if_used
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvccommon import names
from pvccommon.errors import Exists, NotFound, Problem, WrongInput
from pvccommon.models import NetworkTemplate, NetworkTemplateNet, Profile

blueprint = Blueprint("templates_network", __name__)
NOUN = "network template"
MAX_NETWORKS = 32


class NetworkTemplateParameters(Schema):
    name = Name(required=True)
    mac_template = MacTemplate(
        allow_none=True,
        metadata=documented("address pattern with {prefix}, {vmid}, {netid}; derived when unset"),
    )


class NetworkParameters(Schema):
    permit_duplicate = Flag(load_default=False, metadata=documented("allow a second NIC in the same network"))


class NetworkElement(Schema):
    id = fields.Integer()
    network_template = fields.Integer()
    vni = fields.String()


class NetworkTemplateElement(Schema):
    id = fields.Integer()
    name = fields.String()
    mac_template = fields.String(allow_none=True)
    ova = fields.Constant(None, metadata=documented("OVA images are not supported yet", nullable=True))
    networks = fields.List(fields.Nested(NetworkElement))


@blueprint.get("/provisioner/template/network")
@endpoint(Filter, NetworkTemplateElement, many=True)
def list_network_templates(given: Given) -> Any:
    """List network templates with their networks."""
    with reading() as session:
        return list_rows(session, NetworkTemplate, given.get("limit"), NOUN)


@blueprint.get("/provisioner/template/network/<name>")
@endpoint(NoParameters, NetworkTemplateElement, many=True)
def get_network_template(given: Given, name: str) -> Any:
    """Show a network template."""
    with reading() as session:
        return [get_row(session, NetworkTemplate, name, NOUN)]


@blueprint.post("/provisioner/template/network")
@endpoint(NetworkTemplateParameters)
def create_network_template(given: Given) -> str:
    """Add a network template without networks."""
    with changing(f"add {NOUN} {given['name']}") as session:
        session.add(NetworkTemplate(name=given["name"], mac_template=given.get("mac_template")))
    return f'Added network template "{given["name"]}".'


@blueprint.delete("/provisioner/template/network/<name>")
@endpoint(absent=400)
def delete_network_template(given: Given, name: str) -> str:
    """Remove a network template that no profile uses."""
    what = f"remove {NOUN} {name}"
    with changing(what) as session:
        template = get_row(session, NetworkTemplate, name, NOUN, lock=True)
        users = select(Profile.name).where(Profile.network_template_id == template.id).order_by(Profile.name)
        refuse_if_used(what, session.execute(users).scalars().all())
        session.delete(template)
    return f'Removed network template "{name}".'


@blueprint.post("/provisioner/template/network/<name>/net/<vni>")
@endpoint(NetworkParameters, absent=400, lenient=True)
def add_network(given: Given, name: str, vni: str) -> str:
    """Add a network, which becomes the last NIC."""
    what = f"add network {vni} to {NOUN} {name}"
    if not names.is_vni(vni):
        given.add(
            "vni", f"{vni!r} is neither a number from 1 to {names.MAX_VNI} nor upstream, cluster, storage"
        )
    given.require_ok(what)
    with changing(what) as session:
        template = get_row(session, NetworkTemplate, name, NOUN, lock=True)
        if any(network.vni == vni for network in template.networks) and not given["permit_duplicate"]:
            raise Exists(what, "the network is there already", "permit_duplicate allows a second one")
        if len(template.networks) >= MAX_NETWORKS:
            raise WrongInput(
                what, problems=[Problem("vni", f"a template holds at most {MAX_NETWORKS} networks")]
            )
        session.add(NetworkTemplateNet(network_template=template.id, vni=vni))
    return f'Added network "{vni}" to network template "{name}".'


@blueprint.delete("/provisioner/template/network/<name>/net/<vni>")
@endpoint(absent=400)
def remove_network(given: Given, name: str, vni: str) -> str:
    """Remove all NICs of a network."""
    what = f"remove network {vni} from {NOUN} {name}"
    with changing(what) as session:
        template = get_row(session, NetworkTemplate, name, NOUN, lock=True)
        found = [network for network in template.networks if network.vni == vni]
        if not found:
            raise NotFound(what, "the template has no such network")
        for network in found:
            template.networks.remove(network)
    return f'Removed network "{vni}" from network template "{name}".'
