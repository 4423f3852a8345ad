"""A plan and a domain document to start from; tests change what they are about."""

import copy
from typing import Any

from vmbuilder.context import Context
from vmbuilder.domain import domain_xml

UUID = "b5a5a2d0-6f0f-4b8e-9a53-0d6f2f1c1a11"
PLAN: dict[str, Any] = {
    "vm": {"name": "web1", "uuid": UUID, "id": 1},
    "profile": "small",
    "node": "hv1",
    "define": True,
    "start": True,
    "script": {"name": "noop", "source": "", "sha256": "", "declaration": {"api_version": 1}},
    "arguments": {},
    "argument_texts": {},
    "system": {},
    "mac_template": None,
    "networks": [{"vni": "upstream", "bridge": "brupstream", "user": False, "mac": "52:54:00:00:00:01"}],
    "volumes": [
        {
            "pool": "vms",
            "volume": f"web1_{disk}",
            "disk_id": disk,
            "size_bytes": 2**30,
            "filesystem": None,
            "filesystem_args": [],
            "mountpoint": None,
            "source_volume": None,
        }
        for disk in ("sda", "sdb")
    ],
    "userdata": None,
    "domain": {
        "type": "qemu",
        "machine": "q35",
        "cpu_mode": "maximum",
        "firmware": "bios",
        "architecture": "x86_64",
        "memory_mib": 1024,
        "vcpus": 2,
        "serial": True,
        "vnc": True,
        "vnc_bind": "127.0.0.1",
    },
}


CDROMS: list[dict[str, Any]] = [
    {"pool": "vms", "volume": "image_7_iso", "disk_id": "sdz", "size_bytes": 2**20, "temporary": False},
    {"pool": "vms", "volume": "web1_answers", "disk_id": "sdy", "size_bytes": 2**20, "temporary": True},
]


def plan(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(PLAN), **changes}


def sdk_xml(of: dict[str, Any] | None = None) -> str:
    """What the SDK's own domain_xml() makes of a plan."""
    found = of or plan()
    context = {
        **{f"vm_{key}": value for key, value in found["vm"].items()},
        "vm_profile": "small",
        "vm_data": {},
        "arguments": {},
        "userdata": None,
        "api_version": 1,
        "cdroms": found.get("cdroms", []),
        **{key: found[key] for key in ("volumes", "networks", "domain")},
    }
    return domain_xml(Context.from_json(context))
