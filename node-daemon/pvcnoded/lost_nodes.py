"""Other nodes that are gone: builds that wait for them move, builds that ran there are undone from here.

Every living node looks. Rows are taken with SKIP LOCKED, so that each is seen to by one.
"""

import logging
from datetime import datetime

from celery import Celery
from sqlalchemy import select

from pvccommon import builds, queue
from pvccommon.database import database_now
from pvccommon.errors import PvcError
from pvccommon.models import ACTIVE_STATES, Build, Json, Node, one_of
from pvccommon.moving import move_waiting
from pvccommon.placement import is_silent
from pvcnoded.build import BuildProcess
from pvcnoded.lost_node import LostNode
from pvcnoded.sweeper import RUNS

logger = logging.getLogger("pvc.lost_nodes")


class LostNodes:
    """Looks after the builds of nodes that have not been heard of for `node.dead_after_s`."""

    def __init__(self, process: BuildProcess, app: Celery) -> None:
        self._process = process
        self._database = process.database
        self._settings = process.config.node
        self._app = app

    def look(self) -> None:
        """Errors of one node do not stop the others."""
        for node in self._lost():
            try:
                self._move_waiting(node)
                self._undo_running(node)
            except PvcError as exc:
                logger.error("lost node %s: %s", node.name, exc.message)

    def _lost(self) -> list[Node]:
        """Nodes that are gone and have builds that have not ended."""
        with self._database.session() as session:
            at = database_now(session)
            active = select(Build.node).where(one_of(Build.state, ACTIVE_STATES)).distinct()
            names = session.execute(active.order_by(Build.node)).scalars().all()
            nodes = [session.get(Node, name) for name in names]
            return [node for node in nodes if self._is_lost(node, at)]

    def _is_lost(self, node: Node | None, at: datetime) -> bool:
        if node is None or node.name == self._settings.name:
            return False
        return is_silent(node, at, self._settings.dead_after)

    def _move_waiting(self, lost: Node) -> None:
        with self._database.session() as session:
            moved = move_waiting(session, self._process.config, lost.name)
        for build in moved:
            logger.warning("build %s: moved from %s to %s", build.id, lost.name, build.node)
            queue.send_build(self._app, build.id, build.node)

    def _undo_running(self, lost: Node) -> None:
        """What fails now is tried again later, by any node."""
        place = LostNode(lost.name, frozenset(self._shared_pools(lost)))
        for build_id in self._abandoned(lost.name):
            error = self._take_over(build_id, lost.name)
            if error is not None:
                logger.warning("build %s: node %s is gone; undoing what is reached", build_id, lost.name)
                self._process.undo(build_id, error, place)

    def _abandoned(self, node: str) -> list[str]:
        """Builds that ran on the node and whose lease has expired."""
        with self._database.session() as session:
            at = database_now(session)
            ran = select(Build).where(Build.node == node, one_of(Build.state, RUNS)).order_by(Build.number)
            return [build.id for build in session.execute(ran).scalars() if _has_expired(build, at)]

    def _take_over(self, build_id: str, node: str) -> Json | None:
        """Take the lease of a build; why it ended, or None when it need not be undone from here."""
        with self._database.session() as session:
            query = select(Build).where(Build.id == build_id).with_for_update(skip_locked=True)
            build: Build | None = session.execute(query).scalar_one_or_none()
            at = database_now(session)
            if build is None or build.state not in RUNS or build.node != node:
                return None
            if not _has_expired(build, at) or not self._is_lost(session.get(Node, node), at):
                return None
            builds.give_lease(session, build, str(self._process.owner), self._process.lease)
            return _error(build)

    def _shared_pools(self, lost: Node) -> list[str]:
        """Pools of which this node sees the same volumes as the lost one."""
        found = []
        for name, pool in self._process.pools.items():
            theirs = lost.pools.get(name, {}).get("identity")
            try:
                if theirs and theirs == pool.identity():
                    found.append(name)
            except PvcError as exc:
                logger.warning("pool %s: %s", name, exc.message)
        return found


def _has_expired(build: Build, at: datetime) -> bool:
    return build.lease_until is None or build.lease_until <= at


def _error(build: Build) -> Json:
    """A cancel that was accepted, or else the loss of its node, is why a build ends."""
    if build.cancel_requested:
        return builds.cancelled_error(build)
    return {
        "kind": "environment",
        "what": f"create VM {build.vm}",
        "why": f"node {build.node} was lost while the build ran",
        "hint": builds.retry_command(build.id),
        "stage": build.stage,
    }
