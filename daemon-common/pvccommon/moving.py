"""Builds that wait for a node which is gone go to others; what the node decides of a plan is settled anew."""

import copy
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon.builds import note_event
from pvccommon.checks import NAME_CHECK, check_node, check_plan
from pvccommon.config import Config
from pvccommon.errors import Problem
from pvccommon.models import Build, BuildState, Json
from pvccommon.placement import Candidate, choose_node, load_candidates, lock_placement
from pvccommon.planning import settle_on


def move_waiting(session: Session, config: Config, lost: str) -> list[Build]:
    """Move the builds that wait for a node, in the order of acceptance; the caller sends those returned.

    One for which there is no other node stays, and its status says why. Rows somebody else works on are left
    to him.
    """
    lock_placement(session)
    waiting = (
        select(Build)
        .where(Build.node == lost, Build.state == BuildState.QUEUED.value)
        .order_by(Build.number)
        .with_for_update(skip_locked=True)
    )
    return [build for build in session.execute(waiting).scalars().all() if move_build(session, config, build)]


def move_build(session: Session, config: Config, build: Build) -> bool:
    """Move one build; the caller has locked its row, and placement."""
    plan, before = copy.deepcopy(build.plan), build.node
    # Loaded for each build: those moved before it take memory now.
    candidates = load_candidates(session, config.node.dead_after)
    why = _place(session, plan, candidates, config.node.reserved_memory_mib)
    if plan["node"] == before:
        status = f"waiting: node {before} is gone, and no other node can take it: {why}"
        if build.status != status:
            build.status = status
            note_event(session, build, "warning", status)
        return False
    build.plan, build.node = plan, plan["node"]
    build.requested = {**build.requested, "run_on": build.node}
    build.status = f"waiting for node {build.node}, because node {before} is gone"
    note_event(session, build, "warning", f"moved from {before} to {build.node}: node {before} is gone")
    session.flush()
    return True


def _place(session: Session, plan: Json, candidates: Sequence[Candidate], reserved_mib: int) -> str:
    """Settle the plan on the best other node that passes every check; returns what is against the rest."""
    home = next((node for node in candidates if node.name == plan["node"]), None)
    left = [node for node in candidates if node is not home]
    reasons = []
    while (node := choose_node(left, plan, reserved_mib)) is not None:
        settled = copy.deepcopy(plan)
        reason = _reason_against(session, settled, home, node, candidates, reserved_mib)
        if reason is None:
            plan.update(settled)
            break
        reasons.append(f"{node.name}: {reason}")
        left.remove(node)
    return "; ".join(reasons) or check_node(plan, None, left).message


def _reason_against(
    session: Session,
    plan: Json,
    home: Candidate | None,
    node: Candidate,
    candidates: Sequence[Candidate],
    reserved_mib: int,
) -> str | None:
    """The first thing that keeps a node from a plan, which is settled on it; None when nothing does."""
    problems: list[Problem] = []
    settle_on(node, plan, problems)
    for problem in problems:
        return problem.message
    for volume in plan["volumes"]:
        if volume["source_volume"] and not _share(home, node, volume["pool"]):
            return f"volume {volume['pool']}/{volume['source_volume']} is not there"
    # Volumes are not looked for: the node does that itself when it begins.
    for check in check_plan(session, plan, node, candidates, reserved_mib, None):
        if not check.ok and check.name != NAME_CHECK:  # its name is taken: by itself
            return check.message
    return None


def _share(one: Candidate | None, other: Candidate, pool: str) -> bool:
    """Whether two nodes see the same volumes in a pool."""
    identity = one and one.pools.get(pool, {}).get("identity")
    return bool(identity) and identity == other.pools.get(pool, {}).get("identity")
