"""Orphans: what looks like ours and no row knows. Nodes find them; here they are put together and removed."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Blueprint
from marshmallow import Schema, fields
from sqlalchemy import select

from pvcapid.endpoint import endpoint
from pvcapid.fields import NoParameters, Text, Texts, documented
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvccommon.errors import PvcError, WrongState
from pvccommon.models import Node
from pvccommon.placement import alive_nodes
from pvccommon.queue import call_node

blueprint = Blueprint("orphans", __name__)
ANSWER_TIMEOUT_S = 60
AT_ONCE = 8  # nodes that are asked at one time
MOST = 1000

Found = dict[str, Any]


class OrphanElement(Schema):
    id = fields.String(metadata=documented("what DELETE takes"))
    kind = fields.String(metadata=documented("volume, domain, snapshot or mapping"))
    node = fields.String(allow_none=True, metadata=documented("null for what every node sees"))
    name = fields.String()
    size_bytes = fields.Integer(allow_none=True)
    used_bytes = fields.Integer(allow_none=True)
    why = fields.String(metadata=documented("what it is, and why it belongs to nobody"))


class OrphanSelection(Schema):
    orphan = Texts(
        Text(longest=512), most=MOST, required=True, metadata=documented("ids, as the list has them")
    )


class FailureElement(Schema):
    id = fields.String()
    message = fields.String()


class RemovedAnswer(Schema):
    message = fields.String(required=True)
    removed = fields.List(fields.String(), metadata=documented("ids of those that are gone"))
    failed = fields.List(fields.Nested(FailureElement))


@blueprint.get("/orphans")
@endpoint(NoParameters, OrphanElement, many=True)
def list_orphans(given: Given) -> Any:
    """List what looks like ours on the nodes that run, and no row knows."""
    return [orphan for orphan, _ in _find(_shares()).values()]


@blueprint.delete("/orphans")
@endpoint(OrphanSelection, RemovedAnswer)
def remove_orphans(given: Given) -> Any:
    """Remove orphans. What is none at this moment is left alone, and named in the answer."""
    wanted = list(dict.fromkeys(given["orphan"]))
    shares = _shares()
    found = _find(shares)
    failed = [
        {"id": one, "message": f"{one[:200]} is no orphan, or not any more"}
        for one in wanted
        if one not in found
    ]
    by_node: dict[str, list[str]] = {}
    for one in wanted:
        if one in found:
            by_node.setdefault(found[one][1], []).append(one)
    removed: list[str] = []
    for node, ids in by_node.items():
        answer = _remove_on(node, shares[node], ids)
        removed += answer["removed"]
        failed += answer["failed"]
    return {
        "message": f"Removed {len(removed)} of {len(wanted)} orphans.",
        "removed": removed,
        "failed": failed,
    }


def _shares() -> dict[str, list[str]]:
    """The nodes that run, each with the pools it shall look into: its own, and a share of the common ones."""
    with reading() as session:
        alive = alive_nodes(session, services().config.node.dead_after)
        nodes = session.execute(select(Node).order_by(Node.name)).scalars().all()
    taken: set[str] = set()
    shares: dict[str, list[str]] = {}
    for node in (node for node in nodes if node.name in alive):
        mine = [name for name, pool in node.pools.items() if not pool.get("shared") or name not in taken]
        taken.update(name for name in mine if node.pools[name].get("shared"))
        shares[node.name] = mine
    return shares


def _find(shares: Mapping[str, list[str]]) -> dict[str, tuple[Found, str]]:
    """Orphans by id, each with the node that has found it.

    Raises WrongState when a node does not answer: a part would look like the whole.
    """
    answers = _ask_all(shares)
    found = {}
    for node, answer in answers.items():
        others = {name for other in answers if other != node for name in answers[other]["named"]}
        for orphan in answer["orphans"]:
            # A volume that every node sees may be the disk of a domain on another one.
            if orphan["node"] is not None or orphan["source"] not in others:
                found[orphan["id"]] = (orphan, node)
    return found


def _ask_all(shares: Mapping[str, list[str]]) -> dict[str, Any]:
    queue = services().queue

    def ask(node: str) -> Any:
        return call_node(queue, node, "orphans.list", {"pools": shares[node]}, ANSWER_TIMEOUT_S)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        asked = {node: threads.submit(ask, node) for node in shares}
        return {node: _answer(node, future.result) for node, future in asked.items()}


def _answer(node: str, take: Callable[[], Any]) -> Any:
    try:
        return take()
    except PvcError as exc:
        # As a 5xx existing clients would not show it.
        raise WrongState("list orphans", f"node {node}: {exc.message}", exc.hint) from exc


def _remove_on(node: str, pools: list[str], ids: Iterable[str]) -> Any:
    wanted = list(ids)
    try:
        arguments = {"pools": pools, "ids": wanted}
        return call_node(services().queue, node, "orphans.remove", arguments, ANSWER_TIMEOUT_S)
    except PvcError as exc:
        return {"removed": [], "failed": [{"id": one, "message": exc.message} for one in wanted]}
