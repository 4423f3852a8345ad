"""The sweeper: at start and every minute, whatever a killed process has left is found and undone."""

import logging
from datetime import datetime, timedelta

from celery import Celery
from sqlalchemy import select

from pvccommon import builds, queue
from pvccommon.database import database_now
from pvccommon.errors import PvcError
from pvccommon.models import (
    FINAL_STATES,
    PENDING,
    Build,
    BuildState,
    Json,
    Resource,
    one_of,
)
from pvcnoded.build import BuildProcess
from pvcnoded.imports.dead_imports import undo_imports_of_dead
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
        """Look at every build of this node that left something. Errors of one do not stop the others."""
        for build_ids, recover in (
            (self._unfinished(), self.recover_if_dead),
            (self._ended_with_leftovers(), self._process.undo_rest),
        ):
            for build_id in build_ids:
                try:
                    recover(build_id)
                except PvcError as exc:
                    logger.error("build %s: could not be undone, trying again: %s", build_id, exc.message)
        with self._process.database.session() as session:
            builds.drop_old_secrets(session, timedelta(hours=self._process.config.builds.keep_secrets_hours))
        undo_imports_of_dead(self._process.database, self._process.pools, self._process.owner)
        for pool in self._process.pools.values():
            try:
                for line in pool.sweep():
                    logger.info("pool %s: %s", pool.name, line)
            except PvcError as exc:
                logger.error("pool %s: %s", pool.name, exc.message)

    def recover_if_dead(self, build_id: str) -> None:
        """Undo a build whose process is gone, also one that was ended while this node did not answer.

        One that runs or waits is left alone.
        """
        if not self._take_over(build_id):
            if self._has_ended(build_id):
                self._process.undo_rest(build_id)
            return
        logger.warning("build %s: its process is gone; undoing what it made", build_id)
        self._process.undo(build_id, self._error(build_id))

    def resend(self, app: Celery) -> None:
        """Send builds again that wait although their queue is empty: never sent, or lost by Redis."""
        with self._process.database.session() as session:
            build_ids = builds.waiting_since(session, self._node, RESEND_AFTER)
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

    def _ended_with_leftovers(self) -> list[str]:
        """Ended builds of which something on this node is still to be undone: what was kept of them has been
        discarded while the node could not hear of it, or they were ended elsewhere."""
        with self._process.database.session() as session:
            query = (
                select(Resource.build)
                .join(Build, Build.id == Resource.build)
                .where(
                    Resource.node == self._node,
                    one_of(Resource.state, PENDING),
                    one_of(Build.state, FINAL_STATES),
                )
                .distinct()
            )
            return list(session.execute(query).scalars())

    def _take_over(self, build_id: str) -> bool:
        """Take the lease of a build whose holder is dead; False when there is nothing to do."""
        with self._process.database.session() as session:
            build = builds.find_build(session, build_id, lock=True)
            if build.state not in RUNS or build.node != self._node:
                return False
            if build.lease_owner and self._is_held(build, database_now(session)):
                return False
            builds.give_lease(session, build, str(self._process.owner), self._process.lease)
            return True

    def _has_ended(self, build_id: str) -> bool:
        with self._process.database.session() as session:
            return builds.find_build(session, build_id).state in FINAL_STATES

    def _is_held(self, build: Build, at: datetime) -> bool:
        """Whether somebody else works on the build; `at` is the database's time.

        Of a process here it is known whether it lives: one that does has its build, unless it has let the
        lease run out (it hangs, or was stopped): then it is killed. Of another node's only the lease tells.
        """
        owner = Owner.parse(build.lease_owner or "")
        if owner == self._process.owner:
            return False
        has_expired = build.lease_until is None or at >= build.lease_until
        if owner.node != self._node:
            return not has_expired
        if has_expired and build.state == BuildState.RUNNING and owner.is_alive():
            logger.warning("build %s: process %d let its lease run out; killing it", build.id, owner.pid)
            owner.kill()
        return owner.is_alive()

    def _error(self, build_id: str) -> Json:
        with self._process.database.session() as session:
            build = builds.find_build(session, build_id)
            if build.cancel_requested:
                return builds.cancelled_error(build)
            return {
                "kind": "environment",
                "what": f"create VM {build.vm}",
                "why": "the worker was killed, or the node went down, while the build ran",
                "hint": builds.retry_command(build_id),
                "stage": build.stage,
            }
