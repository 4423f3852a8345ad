"""Which node is asked about a pool or a volume.

A pool is as its nodes have last reported it. One that every node sees (Ceph) is asked of any living node; of
one that is local to its nodes (a directory), each node has volumes of its own.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvcapid.services import reading, services
from pvccommon.errors import EnvironmentFault, NotFound, PvcError, TimedOut, WrongInput, WrongState
from pvccommon.models import Node
from pvccommon.placement import alive_nodes
from pvccommon.queue import call_node

ANSWER_TIMEOUT_S = 60
# Copying, or removing, a whole volume; existing clients wait for 48 h.
SLOW_TIMEOUT_S = 12 * 3600
THREADS = 8
SEE_POOLS = "see: pvc storage pool list"


@dataclass(frozen=True)
class Place:
    """A pool on the node to ask. `shown_node` is what answers show: null for a pool all nodes share."""

    node: str
    pool: str
    shared: bool
    report: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def shown_node(self) -> str | None:
        return None if self.shared else self.node

    def ask(self, verb: str, arguments: Mapping[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """The node's answer about this pool; raises its error, or EnvironmentFault."""
        return call_node(services().queue, self.node, verb, {"pool": self.pool, **arguments}, timeout_s)

    def look(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        """The same for answers to GET: what the node cannot say is WrongState."""
        return _look(services().queue, self, verb, {"pool": self.pool, **arguments})


def all_places(node: str | None = None, pool: str | None = None) -> list[Place]:
    """Every pool on every living node that has it; a shared one once, where it works.

    Raises NotFound for a node nobody knows, WrongState for one that does not report, NotFound for a pool
    that none of them has.
    """
    nodes = _living(node)
    places: dict[tuple[str, str | None], tuple[bool, Place]] = {}
    for found in nodes:
        for name, report in found.pools.items():
            place = Place(found.name, name, bool(report.get("shared")), report)
            key, works = (name, place.shown_node), not report.get("error")
            if pool in (None, name) and (key not in places or (works and not places[key][0])):
                places[key] = works, place
    if pool is not None and not places:
        raise no_pool(pool, nodes, node)
    return [places[key][1] for key in sorted(places, key=lambda key: (key[0], key[1] or ""))]


def place_for_new(pool: str, node: str | None, what: str) -> Place:
    """Where something new of a pool is made; raises WrongInput naming the nodes when there is a choice."""
    places = all_places(node, pool)
    if len(places) > 1:
        raise _which_node(what, f"several nodes have a pool {pool}", places)
    return places[0]


def place_of_volume(pool: str, volume: str, node: str | None, what: str) -> Place:
    """Where a volume is. Raises NotFound; WrongInput naming the nodes when several have one of that name.

    With one possible place nobody is asked: the change itself finds out.
    """
    places = all_places(node, pool)
    if len(places) == 1:
        return places[0]
    answers = ask_each(places, "volume.find", lambda place: {"pool": place.pool, "volume": volume})
    having = [place for place, answer in answers if answer["found"]]
    if not having:
        raise NotFound(what, "there is no such volume", "see: pvc storage volume list")
    if len(having) > 1:
        raise _which_node(what, f"several nodes have a volume {pool}/{volume}", having)
    return having[0]


def ask_each(places: Iterable[Place], verb: str, arguments: Any) -> list[tuple[Place, Any]]:
    """The answers of several places, asked at one time, in order; raises the first error.

    `arguments` makes the arguments of a place. An answer that is missing is no empty one, so the error says
    whom to leave out.
    """
    answers = answers_of(places, verb, arguments)
    for _, answer in answers:
        if isinstance(answer, PvcError):
            raise answer
    return answers


def answers_of(places: Iterable[Place], verb: str, arguments: Any) -> list[tuple[Place, Any]]:
    """The same, with an error in the place of an answer that there is none of."""
    listed, queue = list(places), services().queue

    def ask(place: Place) -> Any:
        try:
            return _look(queue, place, verb, arguments(place))
        except PvcError as exc:
            return exc

    with ThreadPoolExecutor(THREADS) as threads:
        return list(zip(listed, threads.map(ask, listed), strict=True))


def _look(queue: Celery, place: Place, verb: str, arguments: dict[str, Any]) -> Any:
    try:
        return call_node(queue, place.node, verb, arguments, ANSWER_TIMEOUT_S)
    except (EnvironmentFault, TimedOut) as exc:
        # As a 5xx existing clients would not show it.
        hint = exc.hint or "to see the others, name a pool or a node"
        raise WrongState(f"ask node {place.node} about its pools", exc.message, hint) from exc


def no_pool(pool: str, nodes: Iterable[Node], node: str | None = None) -> NotFound:
    known = ", ".join(sorted({name for found in nodes for name in found.pools})) or "none"
    where = f"node {node} has" if node else "no living node has"
    return NotFound(f"find pool {pool}", f"{where} such a pool", f"known: {known}; {SEE_POOLS}")


def nodes_having(session: Session, pool: str) -> list[str]:
    """Names of all nodes, dead ones included, that have last reported a pool."""
    nodes = session.execute(select(Node).order_by(Node.name)).scalars()
    return [node.name for node in nodes if pool in node.pools]


def living_nodes() -> list[Node]:
    """The nodes that report, by name."""
    with reading() as session:
        alive = alive_nodes(session, services().config.node.dead_after)
        nodes = session.execute(select(Node).order_by(Node.name)).scalars().all()
    return [node for node in nodes if node.name in alive]


def _living(node: str | None) -> list[Node]:
    if node is None:
        return living_nodes()
    with reading() as session:
        found = session.get(Node, node)
        alive = alive_nodes(session, services().config.node.dead_after)
    if found is None:
        raise NotFound(f"find node {node}", "there is no such node", "see: pvc node list")
    if node not in alive:
        raise WrongState(
            f"ask node {node} about its pools", "it does not report", f"is pvc-node running on {node}?"
        )
    return [found]


def _which_node(what: str, why: str, places: Iterable[Place]) -> WrongInput:
    nodes = ", ".join(place.node for place in places)
    return WrongInput(what, f"{why}: {nodes}", "say which with the parameter node (--node)")
