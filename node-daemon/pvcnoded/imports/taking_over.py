"""Imports of a node that is gone: another, which sees the same volumes, ends them for good.

The lost node may only be cut off. So that nothing of it arrives later, the row gets another owner first,
without which no volume is begun, and then what the node was connected to the pool with is fenced.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from sqlalchemy.orm import Session

from pvccommon.database import Database, database_now
from pvccommon.errors import WrongState
from pvccommon.models import Image, ImageState, Node
from pvccommon.placement import is_alive
from pvccommon.storage.pool import StoragePool
from pvcnoded.imports.image_rows import CLIENT
from pvcnoded.lease import Owner


@contextmanager
def taken_over(
    database: Database, pool: StoragePool, image_id: int, me: Owner, dead_after: timedelta
) -> Iterator[None]:
    """An import under way, which no process here has, is this process's own in the context. Safe to repeat.

    Raises WrongState while its node lives, or when this one does not see its volumes.
    """
    client = _take(database, pool, image_id, me, dead_after)
    with pool.expelled(client) if client and client != pool.client() else nullcontext():
        yield


def _take(
    database: Database, pool: StoragePool, image_id: int, me: Owner, dead_after: timedelta
) -> str | None:
    """The client of the pool that the import was done with."""
    with database.session() as session:
        image = session.get(Image, image_id, with_for_update=True)
        if image is None or image.state != ImageState.IMPORTING or not image.owner:
            return None
        owner = Owner.parse(image.owner)
        if owner.node != me.node:
            _check_lost(session, image, owner.node, pool, dead_after)
        image.owner = str(me)
        client: str | None = image.document.get(CLIENT)
        return client


def _check_lost(session: Session, image: Image, node: str, pool: StoragePool, dead_after: timedelta) -> None:
    what = f"remove image {image.name}"
    found = session.get(Node, node)
    if found is None:
        return
    if is_alive(found, database_now(session), dead_after):
        raise WrongState(what, f"node {node} imports it, and runs", "try again")
    theirs = found.pools.get(image.pool, {}).get("identity")
    if not theirs or theirs != pool.identity():
        why = f"its volumes are in pool {image.pool} of node {node}, which this node does not see"
        raise WrongState(what, why, f"node {node} removes it when it runs again")
