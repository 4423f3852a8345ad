"""Which volumes and domains belong to nobody."""

import time

import pytest
from plans import plan, sdk_xml

from pvccommon.storage.pool import Volume
from pvcnoded.domain_mark import DomainMark, disk_sources, mark_domain, read_mark
from pvcnoded.hypervisor import SeenDomain
from pvcnoded.orphans import MIN_AGE_S, Orphan, Owners, ownerless_domains, ownerless_volumes

NOW = time.time()
OWNERS = Owners(volumes={"vms/db1_sda", "fast/web1_sda"}, domains={"known"})


@pytest.mark.parametrize(
    ("pool", "name", "age_s", "orphan"),
    [
        ("vms", "web1_sda", MIN_AGE_S + 1, True),
        ("vms", "web1_vdab", MIN_AGE_S + 1, True),
        ("vms", "web1_sda", MIN_AGE_S - 1, False),
        ("vms", "web1_sda", -5, False),  # a clock that was set back
        ("vms", "db1_sda", MIN_AGE_S * 9, False),
        ("fast", "web1_sda", MIN_AGE_S * 9, False),
        ("fast", "db1_sda", MIN_AGE_S * 9, True),  # the row names one in another pool
        ("vms", "golden", MIN_AGE_S * 9, False),  # not a name of ours
        ("vms", "golden_image", MIN_AGE_S * 9, False),
        ("vms", "Web1_sda", MIN_AGE_S * 9, False),
        ("vms", "web1_sda_old", MIN_AGE_S * 9, False),
        ("vms", "web.1_sda", MIN_AGE_S * 9, False),
        ("vms", "image_5_sda", MIN_AGE_S * 9, False),  # of an image
        ("vms", "web1_hda", MIN_AGE_S * 9, False),
    ],
)
def test_volumes_of_nobody(pool: str, name: str, age_s: float, orphan: bool) -> None:
    volume = Volume(pool, name, 1, 1, None, "raw", NOW - age_s)
    assert ownerless_volumes([volume], OWNERS, NOW) == ([volume] if orphan else [])


@pytest.mark.parametrize(
    ("uuid", "mark", "orphan"),
    [
        ("lost", DomainMark("pvc", "b1"), True),
        ("known", DomainMark("pvc", "b1"), False),
        ("lost", DomainMark("other", "b1"), False),
        ("lost", None, False),
    ],
)
def test_domains_of_nobody(uuid: str, mark: DomainMark | None, orphan: bool) -> None:
    domain = SeenDomain("web1", uuid, mark, frozenset())
    assert ownerless_domains([domain], OWNERS, "pvc") == ([domain] if orphan else [])


def test_an_id_tells_things_apart() -> None:
    things = [
        Orphan("volume", "hv1", "vms/web1_sda", "", "vms", "web1_sda"),
        Orphan("volume", "hv2", "vms/web1_sda", "", "vms", "web1_sda"),
        Orphan("volume", None, "vms/web1_sda", "", "vms", "web1_sda"),
        Orphan("volume", "hv1", "fast/web1_sda", "", "fast", "web1_sda"),
        Orphan("domain", "hv1", "web1", "", inner="web1/1-2"),
        Orphan("domain", "hv1", "web1", "", inner="web1/1-3"),
    ]
    assert len({thing.id for thing in things}) == len(things)
    assert all(thing.to_json()["id"] == thing.id for thing in things)


def test_mark_is_read_as_it_was_written_and_stands_once() -> None:
    first = mark_domain(sdk_xml(plan()), DomainMark("pvc", "0123"))
    again = mark_domain(first, DomainMark("lab", "4567"))
    assert (read_mark(sdk_xml(plan())), read_mark(first)) == (None, DomainMark("pvc", "0123"))
    assert read_mark(again) == DomainMark("lab", "4567")
    assert again.count("<metadata>") == 1


@pytest.mark.parametrize(
    "metadata",
    [
        "<build>0123</build>",
        '<x:build xmlns:x="urn:another" cluster="pvc">0123</x:build>',
        '<x:builds xmlns:x="urn:x-pvc:domain:1" cluster="pvc">0123</x:builds>',
    ],
)
def test_no_other_metadata_is_a_mark(metadata: str) -> None:
    assert read_mark(f"<domain><metadata>{metadata}</metadata></domain>") is None
    assert read_mark(f"<domain><devices>{metadata}</devices></domain>") is None


def test_disks_name_their_sources_and_what_these_stand_on() -> None:
    found = disk_sources(
        """<domain><devices>
        <disk><source file='/a'/><backingStore><source file='/b'/></backingStore></disk>
        <disk><source protocol='rbd' name='vms/web1_sda'><host name='h'/></source></disk>
        <interface><source bridge='br0'/></interface>
        </devices></domain>"""
    )
    assert {"/a", "/b", "vms/web1_sda"} <= found
    assert "br0" not in found
