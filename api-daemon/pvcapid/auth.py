"""Who calls, and what that caller may do. Both are decided before any parameter is looked at."""

from dataclasses import dataclass

from flask import Flask, g, request

from pvcapid.services import reading, services
from pvccommon.config import LOOPBACK, Config
from pvccommon.errors import Forbidden, Unauthenticated
from pvccommon.tokens import ROLES, find_token

HEADER = "X-Api-Key"
PREFIX = "/api/v1"
PUBLIC = "public"

# What each endpoint demands at least. A test holds this table against the routes: an endpoint without a row
# is refused to everybody.
REQUIRED_ROLE: dict[str, str] = {
    "root.show_root": PUBLIC,
    "root.show_openapi": "viewer",
    "templates.list_all_templates": "viewer",
    "templates_system.list_system_templates": "viewer",
    "templates_system.get_system_template": "viewer",
    "templates_system.create_system_template": "operator",
    "templates_system.modify_system_template": "operator",
    "templates_system.delete_system_template": "operator",
    "templates_network.list_network_templates": "viewer",
    "templates_network.get_network_template": "viewer",
    "templates_network.create_network_template": "operator",
    "templates_network.delete_network_template": "operator",
    "templates_network.add_network": "operator",
    "templates_network.remove_network": "operator",
    "templates_storage.list_storage_templates": "viewer",
    "templates_storage.get_storage_template": "viewer",
    "templates_storage.create_storage_template": "operator",
    "templates_storage.delete_storage_template": "operator",
    "templates_storage.add_disk": "operator",
    "templates_storage.remove_disk": "operator",
    "userdata.list_userdata": "viewer",
    "userdata.get_userdata": "viewer",
    "userdata.create_userdata": "operator",
    "userdata.modify_userdata": "operator",
    "userdata.delete_userdata": "operator",
    "scripts.list_scripts": "viewer",
    "scripts.get_script": "viewer",
    # A script is code that runs on hypervisors, however well confined.
    "scripts.create_script": "admin",
    "scripts.modify_script": "admin",
    "scripts.delete_script": "admin",
    "images.list_images": "viewer",
    "images.get_image": "viewer",
    "images.plan_image": "viewer",
    "images.rename_image": "operator",
    "images.delete_image": "operator",
    "images.upload_image": "operator",
    "images.import_image": "operator",
    "image_uploads.describe_uploads": "viewer",
    "image_uploads.begin_upload": "operator",
    "image_uploads.show_upload": "operator",
    "image_uploads.append_to_upload": "operator",
    "image_uploads.end_upload": "operator",
    "ovas.list_ovas": "viewer",
    "ovas.get_ova": "viewer",
    "ovas.create_ova": "operator",
    "ovas.delete_ova": "operator",
    "profiles.list_profiles": "viewer",
    "profiles.get_profile": "viewer",
    "profiles.create_profile": "operator",
    "profiles.modify_profile": "operator",
    "profiles.delete_profile": "operator",
    "builds.create_vm": "operator",
    "builds.plan_vm": "operator",
    "tasks.list_tasks": "viewer",
    "tasks.get_task": "viewer",
    "tasks.cancel_task": "operator",
    "tasks.discard_task": "operator",
    "retries.retry_task": "operator",
    "orphans.list_orphans": "viewer",
    "orphans.remove_orphans": "admin",
    "task_log.get_task_log": "viewer",
    "vms.list_vms": "viewer",
    "vms.get_vm": "viewer",
    "vms.remove_vm": "operator",
    "vms.set_vm_state": "operator",
    "vms.get_vm_console": "operator",
    "nodes.list_nodes": "viewer",
    "nodes.get_node": "viewer",
    "networks.list_networks": "viewer",
    "pools.list_pools": "viewer",
    "pools.create_pool": "operator",
    "pools.modify_pool": "operator",
    "pools.delete_pool": "operator",
    "volumes.list_volumes": "viewer",
    "volumes.get_volume": "viewer",
    "volumes.create_volume": "operator",
    "volumes.modify_volume": "operator",
    "volumes.delete_volume": "operator",
    "volumes.clone_volume": "operator",
    "volumes.flatten_volume": "operator",
    "volume_content.upload_volume": "operator",
    # What is on the disks of VMs is not for everybody who may look.
    "volume_content.download_volume": "operator",
    "snapshots.list_snapshots": "viewer",
    "snapshots.create_snapshot": "operator",
    "snapshots.rename_snapshot": "operator",
    "snapshots.delete_snapshot": "operator",
    "snapshots.rollback_snapshot": "operator",
    "snapshots.protect_snapshot": "operator",
    "snapshots.unprotect_snapshot": "operator",
    "status.get_status": "viewer",
    "status.get_primary_node": "viewer",
    "status.set_maintenance": "admin",
}


@dataclass(frozen=True)
class Caller:
    name: str
    role: str


def init_app(app: Flask) -> None:
    app.before_request(authenticate)


def authenticate() -> None:
    """Put the caller into `g.caller`. Raises Unauthenticated or Forbidden.

    An unknown URL is answered "not found" only to those who may ask at all.
    """
    required = REQUIRED_ROLE.get(request.endpoint, "nobody") if request.endpoint else ROLES[0]
    if required == PUBLIC:
        return
    g.caller = _identify()
    if not may(g.caller.role, required):
        raise Forbidden(
            f"{request.method} {request.path}",
            f"token {g.caller.name} has the role {g.caller.role}; this needs {required}",
        )


def caller() -> Caller | None:
    found: Caller | None = g.get("caller")
    return found


def may(role: str, required: str) -> bool:
    return role in ROLES and required in ROLES and ROLES.index(role) >= ROLES.index(required)


def _identify() -> Caller:
    token = request.headers.get(HEADER, "")
    if token and services().config.api.authentication.enabled:
        with reading() as session:
            row = find_token(session, token)
        if row is None:
            raise Unauthenticated("authenticate", "the API key is not known", "see: pvc-api token list")
        return Caller(row.name, row.role)
    role = anonymous_role(services().config)
    if role is None:
        raise Unauthenticated("authenticate", "an API key is needed", f"send it in the header {HEADER}")
    _refuse_browsers()
    return Caller("anonymous", role)


def anonymous_role(config: Config) -> str | None:
    """The role of a caller without a token; None unless configured, and bound to loopback."""
    settings = config.api.authentication
    if config.api.listen.address not in LOOPBACK:
        return None
    return settings.anonymous_role if settings.enabled else settings.anonymous_role or ROLES[-1]


def _refuse_browsers() -> None:
    """A web page open on this machine must not act for a caller who needs no token, nor by a name of its own
    that resolves to loopback."""
    host = request.host.rsplit(":", 1)[0].strip("[]")
    if request.headers.get("Origin") or request.headers.get("Sec-Fetch-Site") or host not in LOOPBACK:
        raise Unauthenticated(
            "authenticate", "a browser, or a host name that is not loopback, needs an API key"
        )
