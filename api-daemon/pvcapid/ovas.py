"""OVA images: not supported yet, said in the shapes existing clients expect."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema

from pvcapid.endpoint import endpoint
from pvcapid.fields import Filter, NoParameters, PoolName, Whole
from pvcapid.parameters import Given
from pvccommon.errors import NotFound, WrongState

blueprint = Blueprint("ovas", __name__)
WHY = "OVA images are not supported yet"


class OvaUpload(Schema):
    pool = PoolName()
    ova_size = Whole(0, 1 << 50)


@blueprint.get("/provisioner/ova")
@endpoint(Filter)
def list_ovas(given: Given) -> Any:
    """List OVA images."""
    raise NotFound("list OVA images", "there are none yet")


@blueprint.get("/provisioner/ova/<name>")
@endpoint(NoParameters)
def get_ova(given: Given, name: str) -> Any:
    """Show an OVA image."""
    raise NotFound(f"find OVA image {name}", "there is no such one")


@blueprint.post("/provisioner/ova/<name>")
@endpoint(OvaUpload)
def create_ova(given: Given, name: str) -> Any:
    """Import an OVA image."""
    raise WrongState(f"import OVA image {name}", WHY)


@blueprint.delete("/provisioner/ova/<name>")
@endpoint(absent=400)
def delete_ova(given: Given, name: str) -> Any:
    """Remove an OVA image."""
    raise NotFound(f"remove OVA image {name}", "there is no such one")
