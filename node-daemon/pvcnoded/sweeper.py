"""The sweeper: at start and every minute, whatever a killed process has left is found and undone."""

import logging
from datetime import timedelta

from celery import Celery
from sqlalchemy import select

from pvccommon import builds, queue
from pvccommon.errors import PvcError
from pvccommon.models import Build, BuildState, Json, now, one_of
from pvcnoded.build import BuildProcess
from pvcnoded.lease import Owner

RESEND_AFTER = timedelta(seconds=10)
RUNS = (BuildState.RUNNING.value, BuildState.UNDOING.value)
logger = logging.getLogger("pvc.sweeper")


class Sweeper:
    """Finds builds of this node that nobody runs any more, and undoes them."""

    def __init__(self, process: BuildProcess) -> None:
        self._process = process
        self._node = process.config.node.name

    def sweep(self) -> None:
        """Look at every unfinished build of this node. Errors of one do not stop the others."""
        for build_id in self._unfinished():
            try:
                self.recover_if_dead(build_id)
            except PvcError as exc:
                logger.error("build %s: could not be undone, trying again: %s", build_id, exc.message)
        for pool in self._process.pools.values():
            try:
                for line in pool.sweep():
                    logger.info("pool %s: %s", pool.name, line)
            except PvcError as exc:
                logger.error("pool %s: %s", pool.name, exc.message)

    def is_waiting(self, build_id: str) -> bool:
        """Whether a build is still to be run: not delivered a second time, not cancelled meanwhile."""
        with self._process.database.session() as session:
            return builds.find_build(session, build_id).state == BuildState.QUEUED

    def recover_if_dead(self, build_id: str) -> None:
        """Undo a build whose process is gone; one that ended, or runs, or waits is left alone."""
        if not self._take_over(build_id):
            return
        logger.warning("build %s: its process is gone; undoing what it made", build_id)
        self._process.undo(build_id, self._error(build_id))

    def resend(self, app: Celery) -> None:
        """Send builds again that wait although their queue is empty: never sent, or lost by Redis."""
        with self._process.database.session() as session:
            waiting = session.execute(
                select(Build.id)
                .where(
                    Build.node == self._node,
                    Build.state == BuildState.QUEUED.value,
                    Build.created < now() - RESEND_AFTER,
                )
                .order_by(Build.number)
            ).scalars()
            build_ids = list(waiting)
        if not build_ids or queue.queue_length(app, queue.build_queue(self._node)) > 0:
            return
        for build_id in build_ids:
            logger.warning("build %s: waits but is not in the queue; sending it again", build_id)
            queue.send_build(app, build_id, self._node)

    def _unfinished(self) -> list[str]:
        with self._process.database.session() as session:
            query = (
                select(Build.id)
                .where(Build.node == self._node, one_of(Build.state, RUNS))
                .order_by(Build.number)
            )
            return list(session.execute(query).scalars())

    def _take_over(self, build_id: str) -> bool:
        """Take the lease of a build whose holder is dead; False when there is nothing to do."""
        with self._process.database.session() as session:
            build = builds.find_build(session, build_id, lock=True)
            if build.state not in RUNS or build.node != self._node:
                return False
            if (
                build.lease_owner
                and build.lease_owner != str(self._process.owner)
                and Owner.parse(build.lease_owner).is_alive()
            ):
                return False
            build.lease_owner = str(self._process.owner)
            build.lease_until = now() + self._process.lease
            return True

    def _error(self, build_id: str) -> Json:
        with self._process.database.session() as session:
            build = builds.find_build(session, build_id)
            if build.cancel_requested:
                return builds.cancelled_error(build)
            return {
                "kind": "environment",
                "what": f"create VM {build.vm}",
                "why": "the worker was killed, or the node went down, while the build ran",
                "hint": "run the same create again",
                "stage": build.stage,
            }
