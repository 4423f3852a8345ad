"""Storage templates: the disks of a VM."""

from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import (
    Choice,
    FilesystemArgument,
    Filter,
    Mountpoint,
    Name,
    NoParameters,
    PoolName,
    Texts,
    VolumeName,
    Whole,
    documented,
)
from pvcapid.look_up import get_row, list_rows, refuse_if_used
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvccommon import names
from pvccommon.errors import Exists, NotFound
from pvccommon.models import Node, Profile, StorageTemplate, StorageTemplateDisk

blueprint = Blueprint("templates_storage", __name__)
NOUN = "storage template"
MAX_SIZE_GB = 1024 * 1024


class StorageTemplateParameters(Schema):
    name = Name(required=True)


class DiskParameters(Schema):
    pool = PoolName(required=True, metadata=documented("storage pool"))
    source_volume = VolumeName(metadata=documented("volume to clone, instead of size and file system"))
    disk_size = Whole(1, MAX_SIZE_GB, metadata=documented("GiB"))
    filesystem = Choice(names.FILESYSTEMS)
    filesystem_arg = Texts(
        FilesystemArgument(), most=32, metadata=documented("options of mkfs, such as -L=root")
    )
    mountpoint = Mountpoint(longest=255)


class DiskElement(Schema):
    id = fields.Integer()
    storage_template = fields.Integer()
    pool = fields.String()
    disk_id = fields.String()
    source_volume = fields.String(allow_none=True)
    disk_size_gb = fields.Integer(allow_none=True)
    mountpoint = fields.String(allow_none=True)
    filesystem = fields.String(allow_none=True)
    filesystem_args = fields.Function(
        lambda disk: " ".join(disk.filesystem_args), metadata=documented("options of mkfs", type="string")
    )


class StorageTemplateElement(Schema):
    id = fields.Integer()
    name = fields.String()
    ova = fields.Constant(None, metadata=documented("OVA images are not supported yet", nullable=True))
    disks = fields.List(fields.Nested(DiskElement), metadata=documented("in the order sda … sdz, sdaa …"))

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        value = super().get_attribute(obj, attr, default)
        return sorted(value, key=lambda disk: names.disk_order(disk.disk_id)) if attr == "disks" else value


@blueprint.get("/provisioner/template/storage")
@endpoint(Filter, StorageTemplateElement, many=True)
def list_storage_templates(given: Given) -> Any:
    """List storage templates with their disks."""
    with reading() as session:
        return list_rows(session, StorageTemplate, given.get("limit"), NOUN)


@blueprint.get("/provisioner/template/storage/<name>")
@endpoint(NoParameters, StorageTemplateElement, many=True)
def get_storage_template(given: Given, name: str) -> Any:
    """Show a storage template."""
    with reading() as session:
        return [get_row(session, StorageTemplate, name, NOUN)]


@blueprint.post("/provisioner/template/storage")
@endpoint(StorageTemplateParameters)
def create_storage_template(given: Given) -> str:
    """Add a storage template without disks."""
    with changing(f"add {NOUN} {given['name']}") as session:
        session.add(StorageTemplate(name=given["name"]))
    return f'Added storage template "{given["name"]}".'


@blueprint.delete("/provisioner/template/storage/<name>")
@endpoint(absent=400)
def delete_storage_template(given: Given, name: str) -> str:
    """Remove a storage template that no profile uses."""
    what = f"remove {NOUN} {name}"
    with changing(what) as session:
        template = get_row(session, StorageTemplate, name, NOUN, lock=True)
        users = select(Profile.name).where(Profile.storage_template_id == template.id).order_by(Profile.name)
        refuse_if_used(what, session.execute(users).scalars().all())
        session.delete(template)
    return f'Removed storage template "{name}".'


@blueprint.post("/provisioner/template/storage/<name>/disk/<disk_id>")
@endpoint(DiskParameters, absent=400, lenient=True)
def add_disk(given: Given, name: str, disk_id: str) -> str:
    """Add a disk: blank of a size, or a clone of a volume."""
    what = f"add disk {disk_id} to {NOUN} {name}"
    if not names.DISK_ID.fullmatch(disk_id):
        given.add("disk_id", f"{disk_id!r} is not of the form sda or vda")
    _check_combination(given)
    with changing(what) as session:
        template = get_row(session, StorageTemplate, name, NOUN, lock=True)
        _check_pool(session, given)
        _check_mountpoint(template, given)
        given.require_ok(what)
        if any(disk.disk_id == disk_id for disk in template.disks):
            raise Exists(what, "the disk is there already")
        session.add(_disk(template, disk_id, given))
    return f'Added disk "{disk_id}" to storage template "{name}".'


@blueprint.delete("/provisioner/template/storage/<name>/disk/<disk_id>")
@endpoint(absent=400)
def remove_disk(given: Given, name: str, disk_id: str) -> str:
    """Remove a disk."""
    what = f"remove disk {disk_id} from {NOUN} {name}"
    with changing(what) as session:
        template = get_row(session, StorageTemplate, name, NOUN, lock=True)
        found = [disk for disk in template.disks if disk.disk_id == disk_id]
        if not found:
            raise NotFound(what, "the template has no such disk")
        template.disks.remove(found[0])
    return f'Removed disk "{disk_id}" from storage template "{name}".'


def _check_combination(given: Given) -> None:
    """What no single parameter shows. A parameter that is wrong by itself has its problem already."""
    stated = {problem.path.partition("[")[0] for problem in given.problems} | set(given)
    if "source_volume" in stated:
        for other in ("disk_size", "filesystem", "filesystem_arg", "mountpoint"):
            if other in stated:
                given.add(other, "cannot stand together with source_volume: a clone has what its source has")
        return
    if "disk_size" not in stated:
        given.add("disk_size", "is missing: a disk needs a size or a source_volume")
    elif given.get("disk_size", 0) > services().config.storage.max_volume_gib:
        given.add("disk_size", f"must be at most {services().config.storage.max_volume_gib}")
    if "filesystem" not in stated:
        for other in ("filesystem_arg", "mountpoint"):
            if given.get(other):
                given.add(other, "needs a filesystem")
    elif given.get("filesystem") == "swap" and "mountpoint" in stated:
        given.add("mountpoint", "swap space is not mounted")


def _check_pool(session: Session, given: Given) -> None:
    """A pool must be one that some node reaches; before any node has reported, every name is taken."""
    known = set(services().config.storage.pools)
    for pools in session.execute(select(Node.pools)).scalars():
        known.update(pools)
    if known and "pool" in given and given["pool"] not in known:
        given.add("pool", f"unknown pool {given['pool']!r}; known: {', '.join(sorted(known))}")


def _check_mountpoint(template: StorageTemplate, given: Given) -> None:
    for disk in template.disks:
        if disk.mountpoint is not None and disk.mountpoint == given.get("mountpoint"):
            given.add("mountpoint", f"is that of disk {disk.disk_id} already")


def _disk(template: StorageTemplate, disk_id: str, given: Given) -> StorageTemplateDisk:
    return StorageTemplateDisk(
        storage_template=template.id,
        disk_id=disk_id,
        pool=given["pool"],
        source_volume=given.get("source_volume"),
        disk_size_gb=given.get("disk_size"),
        filesystem=given.get("filesystem"),
        filesystem_args=given.get("filesystem_arg", []),
        mountpoint=given.get("mountpoint"),
    )
