"""Networks of the cluster: none are managed yet, and existing clients need an empty list then."""

from typing import Any

from flask import Blueprint

from pvcapid.endpoint import endpoint
from pvcapid.fields import Filter
from pvcapid.parameters import Given

blueprint = Blueprint("networks", __name__)


@blueprint.get("/network")
@endpoint(Filter, None)
def list_networks(given: Given) -> Any:
    """List managed networks: always empty."""
    return []
