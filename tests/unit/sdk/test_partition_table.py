"""Partition tables of strangers: what sfdisk shows is believed only as far as it makes sense."""

import random
from typing import Any

import pytest

from vmbuilder.partition_table import MAX_PARTITIONS, NotUnderstood, parse_table
from vmbuilder.partitions import MIB, Partition

DEVICE = "/dev/loop3"
DISK = 1024 * MIB
SECTORS = DISK // 512


def entry(number: Any = 1, start: Any = 2048, size: Any = 20480, kind: Any = "L") -> dict[str, Any]:
    return {"node": f"{DEVICE}p{number}", "start": start, "size": size, "type": kind}


def document(
    *entries: Any, label: Any = "gpt", unit: Any = "sectors", sectorsize: Any = 512
) -> dict[str, Any]:
    table = {"label": label, "unit": unit, "sectorsize": sectorsize, "partitions": list(entries)}
    return {"partitiontable": table}


def test_order_is_that_of_the_places() -> None:
    found = parse_table(document(entry(1, 8192, 100), entry(14, 2048, 6144)), DEVICE, DISK)
    assert [part.number for part in found.partitions] == [14, 1]
    assert found.last == Partition(1, 4 * MIB, 51200)


@pytest.mark.parametrize(
    ("label", "disk_mib", "size_mib"),
    [("gpt", 1024, 1022), ("dos", 1024, 1023), ("dos", 3 * 1024**2, 2 * 1024**2 - 2)],
)
def test_last_one_grows_to_the_end(label: str, disk_mib: int, size_mib: int) -> None:
    grown = parse_table(document(entry(), label=label), DEVICE, disk_mib * MIB).grown()
    assert grown and grown.last == Partition(1, MIB, size_mib * MIB)


@pytest.mark.parametrize("missing_sectors", [0, 2048, 4095])
def test_less_than_a_mib_is_not_worth_a_change(missing_sectors: int) -> None:
    size = SECTORS - 2048 - missing_sectors
    assert parse_table(document(entry(size=size)), DEVICE, DISK).grown() is None


def test_only_the_last_changes() -> None:
    before = parse_table(document(entry(2, 2048, 2048), entry(1, 4096, 2048)), DEVICE, DISK)
    grown = before.grown()
    assert grown and grown.partitions[0] == before.partitions[0] and grown.types == before.types


def test_extended_partition_is_no_place_for_anything_and_logical_ones_stay() -> None:
    entries = (entry(1), entry(2, 22528, 20480, "5"), entry(5, 24576, 4096, "82"))
    found = parse_table(document(*entries, label="dos"), DEVICE, DISK)
    assert [part.number for part in found.partitions] == [1, 5]
    with pytest.raises(NotUnderstood, match="logical"):
        found.grown()


HOSTILE = {
    "no table": {},
    "no object": [],
    "null": None,
    "table is a text": {"partitiontable": "gpt"},
    "partitions are a text": {"partitiontable": {"label": "gpt", "unit": "sectors", "partitions": "x"}},
    "empty": document(),
    "unknown label": document(entry(), label="sgi"),
    "label is a list": document(entry(), label=["gpt"]),
    "other unit": document(entry(), unit="cylinders"),
    "4096-byte sectors": document(entry(), sectorsize=4096),
    "entry is a number": document(7),
    "negative start": document(entry(start=-1)),
    "start 0": document(entry(start=0)),
    "negative size": document(entry(size=-20480)),
    "size 0": document(entry(size=0)),
    "huge start": document(entry(start=2**64)),
    "huge size": document(entry(size=2**63 // 512)),
    "sum passes the end": document(entry(start=SECTORS - 10, size=11)),
    "float": document(entry(size=20480.5)),
    "true": document(entry(start=True)),
    "text": document(entry(size="20480")),
    "overlap": document(entry(1), entry(2, 22527, 100)),
    "nested": document(entry(1, 2048, 20480), entry(2, 4096, 100)),
    "same place": document(entry(1), entry(2)),
    "same number": document(entry(1), entry(1, 22528)),
    "number 0": document(entry(0)),
    "number 129": document(entry(129)),
    "number with letters": document(entry("1x")),
    "another disk's node": document({**entry(), "node": "/dev/sda1"}),
    "no node": document({"start": 2048, "size": 1}),
    "node is a list": document({**entry(), "node": [1]}),
    "digits of another script": document({**entry(), "node": f"{DEVICE}p١"}),
    "protective MBR alone": document(entry(kind="ee"), label="dos"),
    "extended alone": document(entry(kind="f"), label="dos"),
    "seventeen": document(*(entry(n, 2048 * n, 2048) for n in range(1, MAX_PARTITIONS + 2))),
    "thousands": document(*(entry(n, 2048 * n, 1) for n in range(1, 5000))),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_table_is_not_understood(hostile: Any) -> None:
    with pytest.raises(NotUnderstood) as refused:
        parse_table(hostile, DEVICE, DISK)
    assert len(str(refused.value)) < 200


def test_random_tables_never_reach_beyond_the_disk() -> None:
    """Whatever is accepted stays within the disk and apart, before and after growing."""
    generator = random.Random(1)
    accepted = 0
    for _ in range(3000):
        entries = [
            entry(generator.randint(1, 16), generator.randint(1, SECTORS), generator.randint(1, SECTORS // 4))
            for _ in range(generator.randint(1, 3))
        ]
        try:
            table = parse_table(document(*entries, label=generator.choice(("gpt", "dos"))), DEVICE, DISK)
            grown = table.grown() or table
        except NotUnderstood:
            continue
        accepted += 1
        ends = [part.start_bytes + part.size_bytes for part in grown.partitions]
        starts = [part.start_bytes for part in grown.partitions]
        assert max(ends) <= DISK and all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert accepted > 100
