"""All three kinds of templates in one answer."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy.orm import Session

from pvcapid.endpoint import endpoint
from pvcapid.fields import Filter
from pvcapid.look_up import matching, whole
from pvcapid.parameters import Given
from pvcapid.services import reading
from pvcapid.templates_network import NetworkTemplateElement
from pvcapid.templates_storage import StorageTemplateElement
from pvcapid.templates_system import SystemTemplateElement
from pvccommon.models import NetworkTemplate, StorageTemplate, SystemTemplate

blueprint = Blueprint("templates", __name__)


class AllTemplates(Schema):
    system_templates = fields.List(fields.Nested(SystemTemplateElement))
    network_templates = fields.List(fields.Nested(NetworkTemplateElement))
    storage_templates = fields.List(fields.Nested(StorageTemplateElement))


@blueprint.get("/provisioner/template")
@endpoint(Filter, AllTemplates)
def list_all_templates(given: Given) -> Any:
    """List all templates."""
    with reading() as session:
        return {
            "system_templates": _rows(session, SystemTemplate, given),
            "network_templates": _rows(session, NetworkTemplate, given),
            "storage_templates": _rows(session, StorageTemplate, given),
        }


def _rows(session: Session, model: Any, given: Given) -> list[Any]:
    statement = whole(model).where(matching(model.name, given.get("limit"))).order_by(model.name)
    return list(session.execute(statement).scalars())
