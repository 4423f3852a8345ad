"""The tables, as users see the things in them. Every change needs a migration (see migrations/).

Names are unique per kind. JSON columns hold documents whose shape is given beside them.
"""

import enum
import secrets
import uuid as uuid_module
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import declarative_base, relationship

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Base: Any = declarative_base(metadata=metadata)
Base.__allow_unmapped__ = True  # plain annotations, for SQLAlchemy 1.4 and 2.0 alike

Json = dict[str, Any]


def now() -> datetime:
    return datetime.now(UTC)


def new_task_id() -> str:
    """A build's id, which is also its task's: 16 hex digits."""
    return secrets.token_hex(8)


class BuildState(enum.StrEnum):
    """`queued -> running -> succeeded | failed | cancelled`, with `undoing` before the last two."""

    QUEUED = "queued"
    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE_STATES = (BuildState.QUEUED, BuildState.RUNNING, BuildState.UNDOING)
FINAL_STATES = (BuildState.SUCCEEDED, BuildState.FAILED, BuildState.CANCELLED)
ACTIVE_SQL = "state IN ('queued', 'running', 'undoing')"


class ResourceState(enum.StrEnum):
    """See `pvcnoded.journal`; `held`: kept of a failed build for inspection, until it is discarded."""

    INTENDED = "intended"
    MADE = "made"
    KEPT = "kept"
    HELD = "held"
    UNDONE = "undone"


# Lines of a journal that are to be kept, held or undone yet.
PENDING = (ResourceState.INTENDED, ResourceState.MADE)


def one_of(column: Any, values: Iterable[str]) -> Any:
    """The condition that a column has one of these values (columns are annotated as what they hold)."""
    return column.in_([str(value) for value in values])


class SystemTemplate(Base):
    """What a VM is made of: CPUs, memory, consoles, placement."""

    __tablename__ = "system_template"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    vcpu_count: int = Column(Integer, nullable=False)
    vram_mb: int = Column(Integer, nullable=False)
    serial: bool = Column(Boolean, nullable=False)
    vnc: bool = Column(Boolean, nullable=False)
    vnc_bind: str | None = Column(String)
    node_limit: str | None = Column(String)
    node_selector: str | None = Column(String)
    node_autostart: bool = Column(Boolean, nullable=False, default=False)
    migration_method: str | None = Column(String)
    migration_max_downtime: int = Column(Integer, nullable=False, default=300)


class NetworkTemplate(Base):
    """The networks of a VM, in the order of its NICs."""

    __tablename__ = "network_template"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    mac_template: str | None = Column(String)
    networks: "list[NetworkTemplateNet]" = relationship(
        "NetworkTemplateNet",
        cascade="all, delete-orphan",
        order_by="NetworkTemplateNet.id",
        passive_deletes=True,
    )


class NetworkTemplateNet(Base):
    __tablename__ = "network_template_net"
    id: int = Column(Integer, Identity(), primary_key=True)
    network_template: int = Column(
        ForeignKey("network_template.id", ondelete="CASCADE"), nullable=False, index=True
    )
    vni: str = Column(String, nullable=False)


class StorageTemplate(Base):
    """The disks of a VM."""

    __tablename__ = "storage_template"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    disks: "list[StorageTemplateDisk]" = relationship(
        "StorageTemplateDisk",
        cascade="all, delete-orphan",
        order_by="StorageTemplateDisk.id",
        passive_deletes=True,
    )


class StorageTemplateDisk(Base):
    """A disk: blank of a size (GiB), optionally with a file system, or a clone of a source volume."""

    __tablename__ = "storage_template_disk"
    id: int = Column(Integer, Identity(), primary_key=True)
    storage_template: int = Column(ForeignKey("storage_template.id", ondelete="CASCADE"), nullable=False)
    pool: str = Column(String, nullable=False)
    disk_id: str = Column(String, nullable=False)
    source_volume: str | None = Column(String)
    disk_size_gb: int | None = Column(Integer)
    mountpoint: str | None = Column(String)
    filesystem: str | None = Column(String)
    filesystem_args: list[str] = Column(JSON, nullable=False, default=list)
    __table_args__ = (UniqueConstraint("storage_template", "disk_id"),)


class Userdata(Base):
    """A cloud-init document."""

    __tablename__ = "userdata"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    userdata: str = Column(Text, nullable=False)


class Script(Base):
    """A builder script; `declaration` is what was read from its source, see `declarations.Declaration`."""

    __tablename__ = "script"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    script: str = Column(Text, nullable=False)
    declaration: Json = Column(JSON, nullable=False)


class ImageKind(enum.StrEnum):
    """`disk`: one disk. `iso`: a CD-ROM. `ova`: several disks and a hardware description."""

    DISK = "disk"
    ISO = "iso"
    OVA = "ova"


class ImageState(enum.StrEnum):
    IMPORTING = "importing"
    READY = "ready"
    FAILED = "failed"


class Image(Base):
    """What a VM's disk can start from, kept as volumes of a pool. Disks are cloned from snapshot `base`.

    `format`: as it was given on upload. `size_bytes`, `sha256`: of what was uploaded. `node`: null in a pool
    that all nodes reach. `document`: {hardware, warnings} of an OVA. `owner`: the process that imports it.
    `error`: null or {kind, what, why, hint}.
    """

    __tablename__ = "image"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    kind: str = Column(String, nullable=False)
    state: str = Column(String, nullable=False, default=ImageState.IMPORTING.value)
    pool: str = Column(String, nullable=False)
    node: str | None = Column(String)
    format: str = Column(String, nullable=False)
    source: str = Column(String, nullable=False, default="upload")  # or the URL it was fetched from
    size_bytes: int | None = Column(BigInteger)
    sha256: str | None = Column(String)
    document: Json = Column(JSON, nullable=False, default=dict)
    percent: float | None = Column(Float)
    error: Json | None = Column(JSON)
    owner: str | None = Column(String)
    created: datetime = Column(DateTime(timezone=True), nullable=False, default=now)
    finished: datetime | None = Column(DateTime(timezone=True))
    volumes: "list[ImageVolume]" = relationship(
        "ImageVolume", cascade="all, delete-orphan", order_by="ImageVolume.position", passive_deletes=True
    )


class ImageVolume(Base):
    """A volume of an image; its row is written before it is made. `size_bytes` is the disk's."""

    __tablename__ = "image_volume"
    image: int = Column(ForeignKey("image.id", ondelete="CASCADE"), primary_key=True)
    position: int = Column(Integer, primary_key=True, autoincrement=False)
    disk_id: str = Column(String, nullable=False)
    pool: str = Column(String, nullable=False)
    volume: str = Column(String, nullable=False)
    size_bytes: int = Column(BigInteger, nullable=False)


class Profile(Base):
    """Templates, script, image and arguments under one name: what a VM is made from."""

    __tablename__ = "profile"
    id: int = Column(Integer, Identity(), primary_key=True)
    name: str = Column(String, nullable=False, unique=True)
    profile_type: str = Column(String, nullable=False)
    system_template_id: int = Column(ForeignKey("system_template.id"), nullable=False)
    network_template_id: int | None = Column(ForeignKey("network_template.id"))
    storage_template_id: int | None = Column(ForeignKey("storage_template.id"))
    userdata_id: int | None = Column(ForeignKey("userdata.id"))
    script_id: int = Column(ForeignKey("script.id"), nullable=False)
    image_id: int | None = Column(ForeignKey("image.id"))
    arguments: list[str] = Column(JSON, nullable=False, default=list)  # ["release=bookworm", …]
    system_template: SystemTemplate = relationship("SystemTemplate")
    network_template: NetworkTemplate | None = relationship("NetworkTemplate")
    storage_template: StorageTemplate | None = relationship("StorageTemplate")
    userdata: Userdata | None = relationship("Userdata")
    script: Script = relationship("Script")
    image: Image | None = relationship("Image")


class Build(Base):
    """One making of one VM. The row is the truth; the queue only carries its id.

    `plan`: the frozen plan (`planning.Plan`), without secrets. `secrets`: values of secret arguments, never
    shown; of a build that failed they are kept for a while, for its retry.
    `stages`: [{stage, started, finished, seconds}]. `error`: null or {kind, what, why, hint, stage}.
    """

    __tablename__ = "build"
    id: str = Column(String, primary_key=True, default=new_task_id)
    number: int = Column(BigInteger, Identity(), nullable=False)  # order of acceptance
    vm: str = Column(String, nullable=False)
    profile: str = Column(String, nullable=False)
    node: str = Column(String, nullable=False)
    memory_mib: int = Column(Integer, nullable=False)
    plan: Json = Column(JSON, nullable=False)
    secrets: Json = Column(JSON, nullable=False, default=dict)
    requested: Json = Column(
        JSON, nullable=False, default=dict
    )  # the request, for the task list, secrets masked
    state: str = Column(String, nullable=False, default=BuildState.QUEUED.value)
    step: int = Column(Integer, nullable=False, default=0)  # 0 to 11, see `stages.STEPS`
    stage: str | None = Column(String)
    percent: float | None = Column(Float)
    status: str = Column(Text, nullable=False, default="waiting for the node")
    stages: list[Json] = Column(JSON, nullable=False, default=list)
    error: Json | None = Column(JSON)
    cancel_requested: bool = Column(Boolean, nullable=False, default=False)
    keep_on_failure: bool = Column(Boolean, nullable=False, default=False)
    retry_of: str | None = Column(String)  # the build whose plan this one runs again
    lease_owner: str | None = Column(
        String
    )  # "<node>/<boot id>/<pid>/<start time>" of the process that runs it
    lease_until: datetime | None = Column(DateTime(timezone=True))
    # By the database's clock, with which nodes compare it.
    created: datetime = Column(DateTime(timezone=True), nullable=False, default=func.clock_timestamp())
    sent: datetime | None = Column(DateTime(timezone=True))
    started: datetime | None = Column(DateTime(timezone=True))
    finished: datetime | None = Column(DateTime(timezone=True))
    __table_args__ = (
        # Two builds, or a build and its retry, can never make the same VM at one time.
        Index("uq_build_active_vm", "vm", unique=True, postgresql_where=text(ACTIVE_SQL)),
        Index("ix_build_created", "created"),
    )


class BuildEvent(Base):
    """A line of a build's log; `seq` counts from 1 without gaps."""

    __tablename__ = "build_event"
    build: str = Column(ForeignKey("build.id", ondelete="CASCADE"), primary_key=True)
    seq: int = Column(Integer, primary_key=True, autoincrement=False)
    time: datetime = Column(DateTime(timezone=True), nullable=False, default=now)
    stage: str = Column(String, nullable=False)
    level: str = Column(String, nullable=False)  # debug, info, warning, error
    message: str = Column(Text, nullable=False)


class Resource(Base):
    """The journal: a thing a build makes that outlives the process which made it (see `journal`)."""

    __tablename__ = "resource"
    build: str = Column(ForeignKey("build.id", ondelete="CASCADE"), primary_key=True)
    seq: int = Column(Integer, primary_key=True, autoincrement=False)
    kind: str = Column(String, nullable=False)  # volume, domain, console
    name: str = Column(String, nullable=False)  # "<pool>/<volume>", domain name, file
    node: str = Column(String, nullable=False)
    state: str = Column(String, nullable=False, default=ResourceState.INTENDED.value)
    __table_args__ = (Index("ix_resource_state", "state"),)


class Node(Base):
    """A hypervisor, as it last reported itself. `pools`: see `pvcnoded.pool_report`."""

    __tablename__ = "node"
    name: str = Column(String, primary_key=True)
    heartbeat: datetime = Column(DateTime(timezone=True), nullable=False)
    started: datetime = Column(DateTime(timezone=True), nullable=False)
    stopped: bool = Column(Boolean, nullable=False, default=False)  # ended in order
    memory_total_mib: int = Column(Integer, nullable=False)
    memory_free_mib: int = Column(Integer, nullable=False)
    vcpus: int = Column(Integer, nullable=False)
    load: float = Column(Float, nullable=False)
    kernel: str = Column(String, nullable=False)
    os: str = Column(String, nullable=False)
    architecture: str = Column(String, nullable=False)
    version: str = Column(String, nullable=False)
    pools: Json = Column(JSON, nullable=False)
    networks: Json = Column(JSON, nullable=False)  # {vni: {bridge, user, present}}
    filesystems: list[str] = Column(JSON, nullable=False)  # those a mkfs program is installed for
    capabilities: Json = Column(JSON, nullable=False)  # {domain_type, cpu_mode, firmware: […], mapping, …}


class CephPool(Base):
    """A storage pool made through the API; nodes have it next to those of their configuration."""

    __tablename__ = "ceph_pool"
    name: str = Column(String, primary_key=True)
    created: datetime = Column(DateTime(timezone=True), nullable=False, default=now)


class Vm(Base):
    """A virtual machine of ours. `tags`: [{name, type, protected}].

    `media`: its CD-ROMs until it first stops, [{pool, volume, disk_id, temporary, started}]; `temporary`:
    made for this VM alone; `started`: it has run with them.
    """

    __tablename__ = "vm"
    name: str = Column(String, primary_key=True)
    uuid: str = Column(String, nullable=False, unique=True, default=lambda: str(uuid_module.uuid4()))
    node: str = Column(String, nullable=False)
    state: str = Column(String, nullable=False)  # wanted: start, stop, disable, provision
    seen: str = Column(String, nullable=False, default="unknown")  # as libvirt has it: running, shutoff, …
    failed_reason: str = Column(Text, nullable=False, default="")
    description: str = Column(Text, nullable=False, default="")
    profile: str = Column(String, nullable=False, default="")
    memory_mib: int = Column(Integer, nullable=False)
    vcpus: int = Column(Integer, nullable=False)
    xml: str = Column(Text, nullable=False)
    userdata: str | None = Column(Text)
    tags: list[Json] = Column(JSON, nullable=False, default=list)
    volumes: list[Json] = Column(JSON, nullable=False, default=list)  # [{pool, volume, disk_id}]
    media: list[Json] = Column(JSON, nullable=False, default=list)
    node_limit: str | None = Column(String)
    node_selector: str | None = Column(String)
    node_autostart: bool = Column(Boolean, nullable=False, default=False)
    migration_method: str | None = Column(String)
    migration_max_downtime: int = Column(Integer, nullable=False, default=300)
    build: str | None = Column(String)
    created: datetime = Column(DateTime(timezone=True), nullable=False, default=now)


class ApiToken(Base):
    """A caller. Only the SHA-256 of its token is kept: tokens are 256 random bits, so no salt is needed."""

    __tablename__ = "api_token"
    name: str = Column(String, primary_key=True)
    hash: str = Column(String, nullable=False, unique=True)
    role: str = Column(String, nullable=False)
    created: datetime = Column(DateTime(timezone=True), nullable=False, default=now)


class Audit(Base):
    """Who changed what, when, from where. `parameters` has secrets and documents masked."""

    __tablename__ = "audit"
    id: int = Column(BigInteger, Identity(), primary_key=True)
    time: datetime = Column(DateTime(timezone=True), nullable=False, default=now)
    who: str = Column(String, nullable=False)
    role: str = Column(String, nullable=False)
    address: str = Column(String, nullable=False)
    method: str = Column(String, nullable=False)
    path: str = Column(String, nullable=False)
    parameters: Json = Column(JSON, nullable=False)
    status: int = Column(Integer, nullable=False)
