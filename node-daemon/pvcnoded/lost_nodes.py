"""Other nodes that are gone: builds that wait for them move, builds that ran there are undone from here.

Every living node looks. Rows are taken with SKIP LOCKED, so that each is seen to by one.
"""

import logging
from datetime import datetime

from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from pvccommon import builds, queue
from pvccommon.database import database_now
from pvccommon.errors import PvcError
from pvccommon.kept_volumes import VOLUME
from pvccommon.models import ACTIVE_STATES, FINAL_STATES, PENDING, Build, Json, Node, Resource, one_of
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
                place = LostNode(node.name, frozenset(self._shared_pools(node)))
                self._undo_running(place)
                self._undo_ended(place)
            except PvcError as exc:
                logger.error("lost node %s: %s", node.name, exc.message)

    def _lost(self) -> list[Node]:
        """Nodes that are gone and have builds that have not ended, or have left volumes."""
        with self._database.session() as session:
            at = database_now(session)
            active = select(Build.node).where(one_of(Build.state, ACTIVE_STATES))
            left = select(Resource.node).where(Resource.kind == VOLUME, one_of(Resource.state, PENDING))
            names = sorted({*session.execute(active).scalars(), *session.execute(left).scalars()})
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

    def _undo_running(self, place: LostNode) -> None:
        """What fails now is tried again later, by any node."""
        for build_id in self._abandoned(place.name):
            error = self._take_over(build_id, place.name)
            if error is not None:
                logger.warning("build %s: node %s is gone; undoing what is reached", build_id, place.name)
                self._process.undo(build_id, error, place)

    def _undo_ended(self, place: LostNode) -> None:
        """Builds that were cancelled, or whose kept volumes were discarded, while their node was gone."""
        for build_id in self._ended_with_leftovers(place):
            if self._take_ended(build_id, place.name):
                logger.warning("build %s: node %s is gone; removing what it left", build_id, place.name)
                self._process.undo_rest_of(build_id, place)

    def _abandoned(self, node: str) -> list[str]:
        """Builds that ran on the node and whose lease has expired."""
        with self._database.session() as session:
            at = database_now(session)
            ran = select(Build).where(Build.node == node, one_of(Build.state, RUNS)).order_by(Build.number)
            return [build.id for build in session.execute(ran).scalars() if _has_expired(build, at)]

    def _ended_with_leftovers(self, place: LostNode) -> list[str]:
        """Ended builds that have left something on the node which can be undone from here."""
        with self._database.session() as session:
            pending = (
                select(Resource)
                .join(Build, Build.id == Resource.build)
                .where(
                    Resource.node == place.name,
                    one_of(Resource.state, PENDING),
                    one_of(Build.state, FINAL_STATES),
                )
                .order_by(Build.number)
            )
            rows = session.execute(pending).scalars()
            return list(dict.fromkeys(row.build for row in rows if place.may_undo(row.kind, row.name)))

    def _take_over(self, build_id: str, node: str) -> Json | None:
        """Take the lease of a build; why it ended, or None when it need not be undone from here."""
        with self._database.session() as session:
            build = self._take(session, build_id, node)
            return _error(build) if build is not None and build.state in RUNS else None

    def _take_ended(self, build_id: str, node: str) -> bool:
        """Take the lease of a build that has ended, for as long as its rest is undone."""
        with self._database.session() as session:
            build = self._take(session, build_id, node)
            return build is not None and build.state in FINAL_STATES

    def _take(self, session: Session, build_id: str, node: str) -> Build | None:
        query = select(Build).where(Build.id == build_id).with_for_update(skip_locked=True)
        build: Build | None = session.execute(query).scalar_one_or_none()
        at = database_now(session)
        if build is None or build.state not in (*RUNS, *FINAL_STATES) or build.node != node:
            return None
        if not _has_expired(build, at) or not self._is_lost(session.get(Node, node), at):
            return None
        builds.give_lease(session, build, str(self._process.owner), self._process.lease)
        return build

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
