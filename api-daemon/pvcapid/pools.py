"""Storage pools: looked at on every node, and made in Ceph by a node that has an account for that."""

import re
from typing import Any

from flask import Blueprint
from marshmallow import Schema, ValidationError, fields
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvcapid.audit import changing
from pvcapid.endpoint import endpoint
from pvcapid.fields import Choice, PoolName, Text, Whole, documented
from pvcapid.look_up import texts_matching
from pvcapid.parameters import Given
from pvcapid.services import reading, services
from pvcapid.storage_nodes import Place, all_places, answers_of, living_nodes, nodes_having
from pvcapid.volumes import OnNode
from pvccommon.errors import Exists, NotFound, Problem, PvcError, WrongInput, WrongState
from pvccommon.models import CephPool, Node, StorageTemplate, StorageTemplateDisk
from pvccommon.queue import call_node

blueprint = Blueprint("pools", __name__)
TIERS = ("default", "hdd", "ssd", "nvme")
MOST_PGS = 65_536
MOST_COPIES = 10
CHANGE_TIMEOUT_S = 120
REPLICATION = re.compile(r"copies=([0-9]{1,3}),mincopies=([0-9]{1,3})")
SURE = "yes-i-really-mean-it"
NUMBERS = (
    *("id", "stored_bytes", "free_bytes", "used_bytes", "used_percent"),
    *("read_bytes", "write_bytes", "read_ops", "write_ops"),
    *("num_objects", "num_object_clones", "num_object_copies", "num_objects_degraded"),
)


def copies_of(text: str) -> tuple[int, int]:
    """(copies, least copies for writing) of `copies=3,mincopies=2`. Raises ValidationError."""
    found = REPLICATION.fullmatch(text)
    if not found:
        raise ValidationError("must be of the form copies=3,mincopies=2")
    return int(found[1]), int(found[2])


class Replication(Text):
    """`copies=3,mincopies=2`: how many copies there are, and how many must be there for writing."""

    def check(self, value: str) -> None:
        copies, mincopies = copies_of(value)
        if not 1 <= mincopies <= copies <= MOST_COPIES:
            raise ValidationError(f"must have 1 <= mincopies <= copies <= {MOST_COPIES}")


class PoolFilter(OnNode):
    limit = Text(longest=128, metadata=documented("regular expression on the name"))


class NewPool(OnNode):
    pool = PoolName(required=True)
    pgs = Whole(1, MOST_PGS, required=True, metadata=documented("placement groups"))
    replcfg = Replication(load_default="copies=3,mincopies=2")
    tier = Choice(TIERS, load_default="default", metadata=documented("class of the disks"))


class PoolChange(OnNode):
    pgs = Whole(1, MOST_PGS, required=True, metadata=documented("placement groups"))


PoolRemoval = OnNode.from_dict({SURE: Choice(("yes",), required=True)}, name="PoolRemoval")


class PoolElement(Schema):
    name = fields.String()
    node = fields.String(metadata=documented("null: every node that has the pool sees it", nullable=True))
    driver = fields.String()
    tier = fields.String()
    pgs = fields.Integer(metadata=documented("0 where there are none"))
    volume_count = fields.Integer()
    error = fields.String(metadata=documented("why its node cannot say more", nullable=True))
    stats = fields.Dict(metadata=documented("; ".join(NUMBERS)))


@blueprint.get("/storage/ceph/pool")
@endpoint(PoolFilter, PoolElement, many=True)
def list_pools(given: Given) -> Any:
    """List the pools of all nodes."""
    try:
        places = all_places(given.get("node"))
    except NotFound as exc:
        raise WrongInput("list pools", hint=exc.hint, problems=[Problem("node", exc.why)]) from exc
    if given.get("limit"):
        with reading() as session:
            wanted = texts_matching(session, [place.pool for place in places], given["limit"])
        places = [place for place in places if place.pool in wanted]
    if not places:
        raise NotFound("list pools", "none matches" if set(given) else "there are none yet")
    answers = answers_of(places, "pool.get", lambda place: {"pool": place.pool})
    return [_element(place, answer) for place, answer in answers]


@blueprint.post("/storage/ceph/pool")
@endpoint(NewPool, absent=400)
def create_pool(given: Given) -> str:
    """Make a pool in Ceph; all nodes that reach the cluster offer it within seconds."""
    name = given["pool"]
    what = f"create pool {name}"
    manager = _manager(given.get("node"), what)
    copies, mincopies = copies_of(given["replcfg"])
    layout = {"pgs": given["pgs"], "tier": given["tier"], "copies": copies, "mincopies": mincopies}
    with changing(what) as session:
        nodes = nodes_having(session, name)
        if nodes or session.get(CephPool, name):
            raise Exists(what, f"node {', '.join(nodes)} has it" if nodes else "there is one of this name")
        session.add(CephPool(name=name))
        session.flush()
        _ask(manager, "pool.create", {"pool": name, **layout})
    return f'Created pool "{name}"; the nodes offer it within seconds.'


@blueprint.put("/storage/ceph/pool/<pool>")
@endpoint(PoolChange, absent=400)
def modify_pool(given: Given, pool: str) -> str:
    """Give a pool another number of placement groups."""
    what = f"resize pool {pool}"
    with changing(what) as session:
        _find(session, pool, what)
        _ask(_manager(given.get("node"), what), "pool.resize", {"pool": pool, "pgs": given["pgs"]})
    return f'Pool "{pool}" gets {given["pgs"]} placement groups; its data moves by and by.'


@blueprint.delete("/storage/ceph/pool/<pool>")
@endpoint(PoolRemoval, absent=400)
def delete_pool(given: Given, pool: str) -> str:
    """Remove a pool that was made here and has no volumes."""
    what = f"remove pool {pool}"
    with changing(what) as session:
        row = _find(session, pool, what)
        _refuse_used(session, pool, what)
        _ask(_manager(given.get("node"), what), "pool.delete", {"pool": pool})
        session.delete(row)
    return f'Removed pool "{pool}".'


def _element(place: Place, answer: Any) -> dict[str, Any]:
    """What the node says; of one that cannot say, what it has last reported."""
    words: dict[str, Any] = {"driver": place.report.get("driver"), "tier": "default"}
    words |= {"pgs": 0, "volume_count": 0}
    total, free = (int(place.report.get(key, 0)) for key in ("total_bytes", "free_bytes"))
    stats: dict[str, Any] = {**dict.fromkeys(NUMBERS, 0), "free_bytes": free, "used_bytes": total - free}
    error = None
    if isinstance(answer, PvcError):
        error = answer.message
    else:
        words = answer["pool"]
    return {"stats": stats, "name": place.pool, "node": place.shown_node, **words, "error": error}


def _find(session: Session, pool: str, what: str) -> CephPool:
    """The row, locked, of a pool made here. Raises NotFound, or WrongState for one of a configuration."""
    row: CephPool | None = session.get(CephPool, pool, with_for_update=True)
    if row is not None:
        return row
    nodes = nodes_having(session, pool)
    if nodes:
        why = f"it stands in the configuration of node {', '.join(nodes)}"
        raise WrongState(what, why, "change it there (storage.pools), and with Ceph's own tools")
    raise NotFound(what, "there is no such pool", "see: pvc storage pool list")


def _refuse_used(session: Session, pool: str, what: str) -> None:
    query = select(StorageTemplate.name).join(StorageTemplateDisk).where(StorageTemplateDisk.pool == pool)
    names = sorted(set(session.execute(query).scalars()))
    if names:
        raise WrongState(
            what, f"storage template {', '.join(names)} names it", "change or remove the template first"
        )


def _manager(node: str | None, what: str) -> str:
    """A living node that may change pools of Ceph. Raises WrongState."""
    managers = [found.name for found in living_nodes() if is_manager(found) and node in (None, found.name)]
    if not managers:
        why = f"{f'node {node}' if node else 'no living node'} has an account that may change pools of Ceph"
        if node:
            why = f"node {node} does not run, or has no account that may change pools of Ceph"
        raise WrongState(what, why, "set storage.ceph.manager_user on a node (docs/storage.md)")
    return managers[0]


def is_manager(node: Node) -> bool:
    return bool(node.capabilities.get("ceph_manager"))


def _ask(node: str, verb: str, arguments: dict[str, Any]) -> Any:
    return call_node(services().queue, node, verb, arguments, CHANGE_TIMEOUT_S)
