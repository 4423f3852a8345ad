"""A part of the fault matrix small enough for every day; `make chaos` runs the whole."""

import itertools
from dataclasses import dataclass

import pytest
from cluster import Cluster

from chaos.builders import BUILDERS
from chaos.cell import find_points, run_cell
from chaos.faults import FAULTS
from chaos.matrix import SUCCEEDED, Cell, Record, Result
from chaos.points import END_POINT, STAGE_POINTS, START_POINT, Brake, Point
from devstack.state import PoolKind

Stand = tuple[Cluster, Brake]
COUNTER = itertools.count()
STAGES = {point.name: point for point in STAGE_POINTS}


@dataclass(frozen=True)
class Sample:
    """A cell by the kind of its point; "intent" and "made" are those of the journal's line about a volume."""

    builder: str
    pool: PoolKind
    kind: str
    fault: str

    def __str__(self) -> str:
        return "-".join((self.builder, self.pool, self.kind, self.fault)).replace(" ", "_")


SAMPLES = (
    Sample("noop", "directory", "load", "redis"),
    Sample("noop", "directory", "setup", "sandbox"),
    Sample("noop", "directory", "create", "node"),
    Sample("two-disk", "directory", "prepare", "worker"),
    Sample("two-disk", "directory", "install", "pool full"),
    Sample("debootstrap", "directory", "prepare", "sandbox"),
    Sample("noop", "directory", "intent", "libvirtd"),
    Sample("noop", "directory", "made", "postgresql"),
    Sample("noop", "directory", "start", "host full"),
    Sample("noop", "directory", "end", "node"),
    Sample("two-disk", "ceph", "install", "osd"),
    Sample("two-disk", "ceph", "cleanup", "worker"),
    Sample("two-disk", "ceph", "install", "pool full"),
    Sample("noop", "ceph", "end", "worker"),
)
# What a build waits for instead of failing.
OUTLASTED = ("redis", "postgresql", "libvirtd", "osd")


def test_every_fault_builder_and_kind_of_point_is_sampled() -> None:
    kinds = {*STAGES, "start", "end", "intent", "made"}
    assert {sample.kind for sample in SAMPLES} == kinds
    assert {sample.fault for sample in SAMPLES} == set(FAULTS)
    assert {sample.builder for sample in SAMPLES} == set(BUILDERS)


@pytest.mark.system
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_build_ends_well_or_with_a_reason_and_leaves_nothing(
    request: pytest.FixtureRequest, sample: Sample
) -> None:
    cluster, brake = request.getfixturevalue(f"on_{sample.pool}")
    cell = Cell(sample.builder, sample.pool, point_of(cluster, sample), sample.fault)
    result = run_cell(cluster, brake, cell, f"chaos{next(COUNTER)}")
    assert result.is_good, f"{cell}: {result.outcome}\n{result.why}\n{dict(result.left)}\n{result.log}"
    assert result.outcome == SUCCEEDED or sample.fault not in OUTLASTED, result.why


def point_of(cluster: Cluster, sample: Sample) -> Point:
    known = {**STAGES, "start": START_POINT, "end": END_POINT}
    if sample.kind in known:
        return known[sample.kind]
    points = find_points(cluster, BUILDERS[sample.builder])
    return next(
        point for point in points if "volume" in point.name and point.name.endswith(f": {sample.kind}")
    )


def test_matrix_is_drawn_and_taken_up_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    record = Record(tmp_path / "chaos.json")
    good, bad = (Cell("noop", "ceph", STAGES["install"], fault) for fault in ("worker", "osd"))
    record.add(good, Result(SUCCEEDED, 2.0))
    record.add(bad, Result("leaked", 3.0, "why", {"mounts": ["/tmp/x"]}))
    again = Record(tmp_path / "chaos.json", resume=True)
    assert good in again and bad in again
    assert again.bad() == [str(bad)]
    assert "install  s L" in again.show()
    assert again.show() == record.show()
