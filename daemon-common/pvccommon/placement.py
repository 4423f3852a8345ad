"""Which node a VM goes to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pvccommon.database import database_now
from pvccommon.models import ACTIVE_STATES, Build, Json, Node, Vm, one_of

# Any number will do; it only has to differ from those of other advisory locks on this database.
PLACEMENT_LOCK = 0x7076_6331


@dataclass(frozen=True)
class Candidate:
    """A node as placement sees it. `memory_free_mib` is what is left after the builds under way;
    `pending` maps pools to the bytes those builds will still take."""

    name: str
    alive: bool
    memory_total_mib: int
    memory_free_mib: int
    memory_provisioned_mib: int
    vcpus_allocated: int
    vms: int
    load: float
    architecture: str
    pools: Json
    networks: Json
    filesystems: Sequence[str]
    capabilities: Json
    pending: Mapping[str, int]


def is_silent(node: Node, at: datetime, dead_after: timedelta) -> bool:
    """Whether a node has not been heard of for too long, be it dead or stopped in order.

    `at`: the database's time, which heartbeats are told in.
    """
    return at - node.heartbeat >= dead_after


def is_alive(node: Node, at: datetime, dead_after: timedelta) -> bool:
    return not node.stopped and not is_silent(node, at, dead_after)


def alive_nodes(session: Session, dead_after: timedelta) -> set[str]:
    """The names of the nodes that run."""
    at = database_now(session)
    nodes = session.execute(select(Node)).scalars()
    return {node.name for node in nodes if is_alive(node, at, dead_after)}


def lock_placement(session: Session) -> None:
    """Let no other transaction place a VM until this one ends: what is free stays so until it is taken."""
    session.execute(select(func.pg_advisory_xact_lock(PLACEMENT_LOCK)))


def load_candidates(session: Session, dead_after: timedelta) -> list[Candidate]:
    """All nodes that ever reported, dead ones included (so that a check can say so)."""
    at = database_now(session)
    usage = {
        node: (count, memory or 0, vcpus or 0)
        for node, count, memory, vcpus in session.execute(
            select(Vm.node, func.count(), func.sum(Vm.memory_mib), func.sum(Vm.vcpus)).group_by(Vm.node)
        )
    }
    builds: dict[str, list[Build]] = {}
    for build in session.execute(select(Build).where(one_of(Build.state, ACTIVE_STATES))).scalars():
        builds.setdefault(build.node, []).append(build)
    nodes = session.execute(select(Node).order_by(Node.name)).scalars()
    return [
        _candidate(
            node,
            is_alive(node, at, dead_after),
            usage.get(node.name, (0, 0, 0)),
            builds.get(node.name, []),
        )
        for node in nodes
    ]


def _candidate(node: Node, alive: bool, usage: tuple[int, int, int], builds: Sequence[Build]) -> Candidate:
    pending: dict[str, int] = {}
    for build in builds:
        for volume in build.plan["volumes"]:
            pending[volume["pool"]] = pending.get(volume["pool"], 0) + (volume["size_bytes"] or 0)
    building_mib = sum(build.memory_mib for build in builds)
    return Candidate(
        name=node.name,
        alive=alive,
        memory_total_mib=node.memory_total_mib,
        memory_free_mib=node.memory_free_mib - building_mib,
        memory_provisioned_mib=usage[1] + building_mib,
        vcpus_allocated=usage[2],
        vms=usage[0] + len(builds),
        load=node.load,
        architecture=node.architecture,
        pools=node.pools,
        networks=node.networks,
        filesystems=node.filesystems,
        capabilities=node.capabilities,
        pending=pending,
    )


SELECTORS: dict[str, Callable[[Candidate], float]] = {  # the lowest value wins
    "mem": lambda node: -node.memory_free_mib,
    "memprov": lambda node: node.memory_provisioned_mib,
    "vcpus": lambda node: node.vcpus_allocated,
    "vms": lambda node: node.vms,
    "load": lambda node: node.load,
}


def allowed_nodes(candidates: Sequence[Candidate], plan: Json) -> list[Candidate]:
    """Living nodes within the template's node limit; only its own for an image that one node has."""
    limit = [name.strip() for name in (plan["system"]["node_limit"] or "").split(",") if name.strip()]
    home = (plan.get("image") or {}).get("node")
    return [
        node
        for node in candidates
        if node.alive and (not limit or node.name in limit) and home in (None, node.name)
    ]


def choose_node(candidates: Sequence[Candidate], plan: Json, reserved_mib: int) -> Candidate | None:
    """The best of the allowed nodes by the template's selector (default: most free memory).

    Nodes that lack something (pools, networks, memory) come last, so that the checks can name it.
    """
    selector = SELECTORS.get(plan["system"]["node_selector"] or "mem", SELECTORS["mem"])

    def rank(node: Candidate) -> tuple[bool, float, str]:
        return not is_fit(node, plan, reserved_mib), selector(node), node.name

    return min(allowed_nodes(candidates, plan), key=rank, default=None)


def is_fit(node: Candidate, plan: Json, reserved_mib: int) -> bool:
    return (
        node.memory_free_mib >= plan["system"]["vram_mb"] + reserved_mib
        and all(volume["pool"] in node.pools for volume in (*plan["volumes"], *plan.get("cdroms", ())))
        and all(network["vni"] in node.networks for network in plan["networks"])
    )
