"""One cell: start a build, stop it at the point, strike, let it go on, mend, and see what is left."""

import time
from contextlib import suppress
from typing import Any

import requests
from cluster import FINAL, Cluster, Footprint
from sqlalchemy import select

from chaos.builders import BUILDERS, STAGES, Builder
from chaos.faults import FAULTS, Fault, NothingToStrike
from chaos.matrix import BROKEN, FAILED, LATE, LEAKED, NOTHING, SUCCEEDED, Cell, Result
from chaos.points import (
    END_POINT,
    STAGE_POINTS,
    START_POINT,
    Brake,
    Point,
    journal_points,
    let_go,
    wait_until_there,
)
from pvccommon.errors import PvcError
from pvccommon.models import Resource, Vm

GONE_TIMEOUT_S = 20  # for what ends by itself a moment after the build's row says so
SPACE_KNOWN_S = 10
# Refusals that follow from the cell before: the API knows the pool's space by the last heartbeat.
PASSING = ("MiB free", "no answer within")
LOG_CHARS = 6000


def find_points(cluster: Cluster, builder: Builder) -> list[Point]:
    """The builder's points, in the order of a build; the journal's lines are read from one without faults."""
    assert {point.word for point in STAGE_POINTS} == set(STAGES)
    with cluster.database.session() as session:
        known = set(session.execute(select(Resource.build)).scalars())
    vm = "clean"
    task = start_build(cluster, builder, vm, "")
    ended = cluster.wait(task, builder.limit_s)
    assert ended["build_state"] == "succeeded", f"{builder.name} fails without any fault: {ended['status']}"
    with cluster.database.session() as session:
        rows = session.execute(
            select(Resource).where(Resource.build == task).order_by(Resource.seq)
        ).scalars()
        lines = [(row.seq, f"{row.kind} {_disk(row.name, vm)}".strip()) for row in rows]
    assert lines and task not in known
    remove_vm(cluster, vm)
    return [*STAGE_POINTS, *journal_points(lines), START_POINT, END_POINT]


def _disk(name: str, vm: str) -> str:
    """`sda` of a volume's name; nothing for the lines there is one of."""
    return name.rpartition(f"{vm}_")[2] if f"{vm}_" in name else ""


def start_build(cluster: Cluster, builder: Builder, vm: str, stage: str) -> str:
    profile = f"{builder.name}-{stage or 'plain'}"
    cluster.make_profile(profile, builder.script(stage), disks=builder.disks)
    request = {"name": vm, "profile": profile, "arg": list(builder.arguments)}
    deadline = time.monotonic() + SPACE_KNOWN_S
    while (answer := cluster.request("POST", "/provisioner/create", **request)).status_code != 202:
        assert any(text in answer.text for text in PASSING) and time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    return str(answer.json()["task_id"])


def run_cell(cluster: Cluster, brake: Brake, cell: Cell, vm: str) -> Result:
    """Never raises for what the cluster does; the stack is to be replaced after a bad end."""
    builder, fault = BUILDERS[cell.builder], FAULTS[cell.fault]
    started = time.monotonic()
    task = ""
    try:
        before = cluster.footprint()
        if not cell.point.stage:
            brake.arm(cell.point.word)
        task = start_build(cluster, builder, vm, cell.point.stage)
        wait_until_there(cluster, brake, cell.point, task)
        struck = time.monotonic()
        was_struck = strike(cluster, brake, cell.point, fault)
        ended = wait_for_end(cluster, task, builder.limit_s - (time.monotonic() - struck))
        fault.mend(cluster)
        brake.release()
        state = ended.get("build_state")
        if state == "succeeded":
            check_vm(cluster, vm)
            remove_vm(cluster, vm)
        left = {} if state not in FINAL else wait_until_gone(cluster, before)
    except (Exception, AssertionError) as exc:
        with suppress(Exception):
            fault.mend(cluster)
        with suppress(Exception):
            brake.release()
        text = f"{type(exc).__name__}: {exc}"
        return Result(BROKEN, _since(started), text, log=read_log(cluster, task))
    error = ended.get("error") or {}
    why = f"{error.get('what')}: {error.get('why')}" if error else ""
    if state not in FINAL:
        return Result(LATE, _since(started), str(ended), log=read_log(cluster, task))
    if left:
        shown = {kind: sorted(found) for kind, found in left.items()}
        return Result(LEAKED, _since(started), why, shown, read_log(cluster, task))
    if not was_struck:
        return Result(NOTHING, _since(started))
    if state == "succeeded":
        return Result(SUCCEEDED, _since(started))
    return Result(FAILED if error.get("why") else BROKEN, _since(started), why)


def strike(cluster: Cluster, brake: Brake, point: Point, fault: Fault) -> bool:
    """Break it, let the build go on in what is broken, mend it a little later. False: nothing to break."""
    try:
        fault.strike(cluster)
    except NothingToStrike:
        return False
    finally:
        let_go(cluster, brake, point)
    if not fault.mended_at_the_end:
        time.sleep(fault.mended_after_s)
        fault.mend(cluster)
    return True


def wait_for_end(cluster: Cluster, task: str, timeout_s: float) -> dict[str, Any]:
    """The task when it has ended, or as it was last seen; the API may not answer in between."""
    deadline = time.monotonic() + timeout_s
    seen: dict[str, Any] = {}
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            answer = cluster.request("GET", f"/tasks/{task}")
            if answer.status_code == 200:
                seen = answer.json()
        if seen.get("build_state") in FINAL:
            break
        time.sleep(0.1)
    return seen


def check_vm(cluster: Cluster, vm: str) -> None:
    """A build that is said to have succeeded has: the VM runs, with all its volumes."""
    assert cluster.domain_state(vm) == "running", f"{vm} is {cluster.domain_state(vm)}"
    with cluster.database.session() as session:
        volumes = session.get(Vm, vm).volumes
    for volume in volumes:
        cluster.pool.stat_volume(volume["volume"])


def remove_vm(cluster: Cluster, vm: str) -> None:
    """Right after a service was started again, its clients may still find that out."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (answer := cluster.request("DELETE", f"/vm/{vm}", delete_disks=True)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.5)


def wait_until_gone(cluster: Cluster, before: Footprint) -> dict[str, set[str]]:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (left := cluster.footprint().since(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def read_log(cluster: Cluster, task: str) -> str:
    if not task:
        return ""
    try:
        return cluster.log(task)[-LOG_CHARS:]
    except (AssertionError, requests.RequestException, PvcError) as exc:
        return f"(no log: {exc})"


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
