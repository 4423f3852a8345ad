"""What the worker tells a script about the VM it builds: the part of the frozen plan that concerns it."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class PlanVolume:
    """One disk of the VM. `filesystem` None: stays blank. `source_volume`: a clone of that.

    With `source_snapshot` it starts from an image's disk, grown to `size_bytes`; else it is as large as its
    source.
    """

    pool: str
    volume: str
    disk_id: str
    size_bytes: int | None = None
    filesystem: str | None = None
    filesystem_args: tuple[str, ...] = ()
    mountpoint: str | None = None
    source_volume: str | None = None
    source_snapshot: str | None = None


@dataclass(frozen=True)
class PlanCdrom:
    """A CD-ROM of the VM, until it first stops. `temporary`: made by the script (see `VMBuilder.answers`)."""

    pool: str
    volume: str
    disk_id: str
    size_bytes: int
    temporary: bool = False


@dataclass(frozen=True)
class PlanNetwork:
    """One network interface of the VM; `vni` names its network."""

    vni: str
    mac: str
    bridge: str = ""


@dataclass(frozen=True)
class DomainSettings:
    """The machine: what the system template and the node decide."""

    type: str = "kvm"
    machine: str = "q35"
    cpu_mode: str = "host-passthrough"
    firmware: str = "bios"
    memory_mib: int = 1024
    vcpus: int = 1
    serial: bool = True
    vnc: bool = False
    vnc_bind: str | None = None
    architecture: str = "x86_64"


@dataclass(frozen=True)
class Context:
    """Everything a script is told. `vm_data` is the script's own copy and may be changed by it."""

    vm_name: str
    vm_id: int = 0
    vm_uuid: uuid.UUID = field(default_factory=uuid.uuid4)
    vm_profile: str = ""
    vm_data: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    userdata: str | None = None
    api_version: int | None = None
    volumes: tuple[PlanVolume, ...] = ()
    cdroms: tuple[PlanCdrom, ...] = ()
    image: Mapping[str, Any] | None = None  # {name, kind, node, hardware} of what the disks start from
    networks: tuple[PlanNetwork, ...] = ()
    domain: DomainSettings = field(default_factory=DomainSettings)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Context":
        """Read the worker's "load" message. Keys this version does not know are ignored."""
        simple = {
            key: document[key]
            for key in ("vm_name", "vm_id", "vm_profile", "userdata", "api_version")
            if document.get(key) is not None
        }
        if document.get("vm_uuid"):
            simple["vm_uuid"] = uuid.UUID(str(document["vm_uuid"]))
        return cls(
            **simple,
            vm_data=dict(document.get("vm_data") or {}),
            arguments=dict(document.get("arguments") or {}),
            volumes=tuple(_volume(item) for item in document.get("volumes") or ()),
            cdroms=tuple(PlanCdrom(**_known(PlanCdrom, item)) for item in document.get("cdroms") or ()),
            image=document.get("image"),
            networks=tuple(_network(item) for item in document.get("networks") or ()),
            domain=DomainSettings(**_known(DomainSettings, document.get("domain") or {})),
        )


def filesystem_arguments(text_or_items: str | Sequence[str] | None) -> tuple[str, ...]:
    """Arguments for mkfs from the plan's spelling: "-L=root -m 1" or its words; "-L=root" becomes -L root."""
    words = text_or_items.split() if isinstance(text_or_items, str) else list(text_or_items or ())
    result: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        result += [option, value] if word.startswith("-") and equals else [word]
    return tuple(result)


def _volume(item: Mapping[str, Any]) -> PlanVolume:
    values = _known(PlanVolume, item)
    values["filesystem_args"] = filesystem_arguments(item.get("filesystem_args"))
    return PlanVolume(**values)


def _network(item: Mapping[str, Any]) -> PlanNetwork:
    values = _known(PlanNetwork, item)
    return PlanNetwork(**{**values, "vni": str(values["vni"]), "bridge": values.get("bridge") or ""})


def _known(kind: Any, item: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `item` that are fields of the dataclass `kind`."""
    return {field.name: item[field.name] for field in fields(kind) if field.name in item}
