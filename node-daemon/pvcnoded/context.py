"""What a builder script is told: the plan in the protocol's shape, and in the contract's `vm_data`."""

from typing import Any

from pvccommon.models import ImageKind, Json

CEPH_PORT = 6789
GIB = 1024**3


def script_context(plan: Json, secrets: Json) -> Json:
    """The `context` of the load message. Secrets go in here, and nowhere else out of the database."""
    declared = plan["script"]["declaration"]["api_version"]
    return {
        "vm_name": plan["vm"]["name"],
        "vm_id": plan["vm"]["id"],
        "vm_uuid": plan["vm"]["uuid"],
        "vm_profile": plan["profile"],
        "vm_data": vm_data(plan, secrets),
        "arguments": {**plan["arguments"], **secrets},
        "userdata": plan["userdata"],
        "api_version": declared,
        "volumes": plan["volumes"],
        "cdroms": plan.get("cdroms", []),
        "image": plan.get("image"),
        "networks": [{key: network[key] for key in ("vni", "mac", "bridge")} for network in plan["networks"]],
        "domain": plan["domain"],
    }


def vm_data(plan: Json, secrets: Json) -> Json:
    """The dictionary existing scripts read (builder contract, section 3)."""
    image = plan.get("image") or {}
    ova = image if image.get("kind") == ImageKind.OVA else None
    return {
        "script_arguments": {
            **plan["argument_texts"],
            **{name: _text(value) for name, value in secrets.items()},
        },
        "system_details": {**plan["system"], "ova": None},
        "mac_template": plan["mac_template"],
        "networks": [
            {"id": index, "network_template": 0, "vni": network["vni"], "eth_bridge": network["bridge"]}
            for index, network in enumerate(plan["networks"], 1)
        ],
        "volumes": [_volume(index, volume, ova) for index, volume in enumerate(plan["volumes"], 1)],
        "script": plan["script"]["source"],
        "system_architecture": plan["domain"]["architecture"],
        "ceph_monitor_list": [],
        "ceph_monitor_port": CEPH_PORT,
        "ceph_monitor_secret": "",
        # The OVF itself is not kept: what it asked for is in the plan.
        **({"ova_details": {"id": ova["id"], "name": ova["name"], "ovf": ""}} if ova else {}),
    }


def _volume(index: int, volume: Json, ova: Json | None) -> Json:
    size = volume["size_bytes"]
    if ova and volume["source_snapshot"]:
        return {
            "id": index,
            "ova": ova["id"],
            "pool": volume["pool"],
            "volume_name": volume["source_volume"],
            "volume_format": "raw",
            "disk_id": volume["disk_id"],
            "disk_size_gb": -(-size // GIB),
        }
    return {
        "id": index,
        "storage_template": 0,
        "pool": volume["pool"],
        "disk_id": volume["disk_id"],
        "source_volume": volume["source_volume"],
        "disk_size_gb": size // GIB if size and not volume["source_volume"] else None,
        "mountpoint": volume["mountpoint"],
        "filesystem": volume["filesystem"],
        "filesystem_args": " ".join(volume["filesystem_args"]),
    }


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
