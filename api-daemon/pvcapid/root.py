"""The root of the API: what this is, and its own description."""

from typing import Any

from flask import Blueprint

from pvcapid.endpoint import endpoint
from pvcapid.openapi import openapi_document
from pvcapid.parameters import Given
from pvccommon import __version__

blueprint = Blueprint("root", __name__)


@blueprint.get("/")
@endpoint()
def show_root(given: Given) -> str:
    """Say what answers here."""
    return f"PVC API version {__version__}"


@blueprint.get("/openapi.json")
@endpoint(answer=None)
def show_openapi(given: Given) -> Any:
    """This document."""
    return openapi_document()
