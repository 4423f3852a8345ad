"""Disks and CD-ROMs of a plan: from a storage template, an image, or both."""

from types import SimpleNamespace
from typing import Any

from pvccommon.checks import check_firmware
from pvccommon.errors import Problem
from pvccommon.models import Image, ImageVolume, StorageTemplateDisk
from pvccommon.planned_disks import plan_cdroms, plan_image, plan_volumes
from pvccommon.planning import settle_on

GIB = 1024**3


def image(kind: str, *sizes_gib: int, state: str = "ready") -> Image:
    volumes = [
        ImageVolume(
            position=index,
            disk_id=f"sd{'abc'[index]}",
            pool="vms",
            volume=f"image_7_{index}",
            size_bytes=gib * GIB,
        )
        for index, gib in enumerate(sizes_gib)
    ]
    return Image(id=7, name="golden", kind=kind, state=state, node=None, document={}, volumes=volumes)


def disk(disk_id: str, size_gib: int | None = None, **values: Any) -> StorageTemplateDisk:
    return StorageTemplateDisk(
        pool=values.pop("pool", "vms"), disk_id=disk_id, disk_size_gb=size_gib, filesystem_args=[], **values
    )


def sources(volumes: list[dict[str, Any]]) -> list[tuple[str, Any, Any, int | None]]:
    return [(v["disk_id"], v["source_volume"], v["source_snapshot"], v["size_bytes"]) for v in volumes]


def test_without_a_template_the_vm_has_the_image_s_disks() -> None:
    problems: list[Problem] = []
    found = plan_volumes("web1", [], image("ova", 2, 5), problems)
    assert sources(found) == [
        ("sda", "image_7_0", "base", 2 * GIB),
        ("sdb", "image_7_1", "base", 5 * GIB),
    ]
    assert [volume["volume"] for volume in found] == ["web1_sda", "web1_sdb"]
    assert problems == []


def test_template_disks_grow_and_further_ones_stay_blank() -> None:
    problems: list[Problem] = []
    disks = [disk("sdb", 9), disk("sda", 20), disk("sdc", None, source_volume="other")]
    found = plan_volumes("web1", disks, image("disk", 2), problems)
    assert sources(found) == [
        ("sda", "image_7_0", "base", 20 * GIB),
        ("sdb", None, None, 9 * GIB),
        ("sdc", "other", None, None),
    ]
    assert problems == []


def test_what_does_not_fit_is_told_at_once() -> None:
    problems: list[Problem] = []
    plan_volumes("web1", [disk("sda", 1, pool="fast")], image("ova", 2, 5), problems)
    assert [(problem.path, problem.message) for problem in problems] == [
        ("storage_template", "has 1 disks without a source, the image has 2"),
        ("disk sda", "is in pool fast, the image in pool vms; a clone stays in its pool"),
        ("disk sda", "is smaller than the image's disk of 2048 MiB"),
    ]


def test_iso_is_a_cdrom_and_no_disk() -> None:
    iso = image("iso", 1)
    assert sources(plan_volumes("web1", [disk("sda", 4)], iso, [])) == [("sda", None, None, 4 * GIB)]
    assert plan_cdroms("web1", iso, 16, "vms") == [
        {"pool": "vms", "volume": "image_7_0", "disk_id": "sdz", "size_bytes": GIB, "temporary": False},
        {"pool": "vms", "volume": "web1_answers", "disk_id": "sdy", "size_bytes": 2**24, "temporary": True},
    ]
    assert plan_cdroms("web1", None, 0, "vms") == []


def test_image_that_is_not_ready_is_a_problem() -> None:
    problems: list[Problem] = []
    assert plan_image(image("disk", 1, state="importing"), problems) is not None
    assert [problem.message for problem in problems] == ["image golden cannot be used: it is importing"]
    assert plan_image(None, problems) is None


def test_firmware_of_the_image_wins_over_the_node_s() -> None:
    system = dict.fromkeys(("vram_mb", "vcpu_count", "serial", "vnc", "vnc_bind"))
    capabilities = {"domain": {"firmware": "bios"}, "firmware": ["bios"]}
    node: Any = SimpleNamespace(name="hv1", networks={}, capabilities=capabilities, architecture="x86_64")
    for hardware, firmware, fits in (({"firmware": "uefi"}, "uefi", [False]), (None, "bios", [])):
        found = {"name": "golden", "hardware": hardware}
        plan = {"vm": {}, "mac_template": None, "networks": [], "system": system, "image": found}
        settle_on(node, plan, [])
        assert plan["domain"]["firmware"] == firmware
        assert [check.ok for check in check_firmware(plan, node)] == fits
