"""One build, in a process of its own: `python3 -m pvcnoded.build BUILD`.

Take the lease, go the forward way, and on any failure undo everything, newest first. The process is started
by the worker and dies with it; what it held dies with it, too, and the journal tells the sweeper the rest.
"""

import argparse
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType

from sqlalchemy.orm import Session

from pvccommon import builds
from pvccommon.config import Config, load_config
from pvccommon.database import PATIENCE_S, Database, database_now
from pvccommon.errors import Cancelled, EnvironmentFault, Internal, LeaseLost, NoSpace, PvcError
from pvccommon.kept_volumes import VOLUME, discard_command
from pvccommon.models import Build, BuildState, Json
from pvccommon.storage.image_users import ProcessIdentity
from pvccommon.storage.pool import PoolSecret
from pvcnoded.build_log import BuildLog, clean
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.journal import Journal
from pvcnoded.lease import LeaseKeeper, Owner
from pvcnoded.lost_node import LostNode
from pvcnoded.pipeline import Pipeline
from pvcnoded.pools import NodePools
from pvcnoded.undo import VM, guard_pools, pools_of, undoers

PR_SET_PDEATHSIG = 1
SHORTEST_SECRET = 4
MOST_STATUS = 2000  # characters of what could not be removed
UNDO_PAUSE_S = 1.0
logger = logging.getLogger("pvc.build")


class BuildProcess:
    """What a build needs of this node: made once for each process, also by the sweeper for its undo.

    With patience, what does not answer (libvirt) or cannot be undone yet is tried again for so long.
    """

    def __init__(self, config: Config, database: Database, patience_s: float = 0.0) -> None:
        self.config = config
        self._patience_s = patience_s
        self.database = database
        self.owner = Owner.myself(config.node.name)
        self.lease = timedelta(seconds=config.builds.lease_s)
        self.pools = NodePools(config, database)
        self.hypervisor = Hypervisor(
            config.hypervisor.libvirt_uri,
            config.hypervisor.console_directory,
            self._pool_secrets,
            patience_s,
        )

    def run(self, build_id: str) -> None:
        """Run a waiting build to its end. A build that is taken, or has ended, is left alone."""
        before = time.monotonic()
        with self.database.session() as session:
            node, owner = self.config.node.name, str(self.owner)
            build = builds.take_build(session, build_id, node, owner, self.lease)
        tell_parent_it_is_taken()
        if build is None:
            logger.info("build %s is taken or has ended; nothing to do", build_id)
            return
        with LeaseKeeper(self.database, build_id, self.owner, self.lease, before):
            pipeline = self._pipeline(build)
            try:
                with interruptible():
                    pipeline.run()
                self._succeed(pipeline)
            except LeaseLost:
                raise
            except BaseException as exc:
                self._fail(pipeline, exc)
                if not isinstance(exc, Exception | Interrupted):
                    raise
            finally:
                pipeline.log.flush()

    def undo(self, build_id: str, error: Json, lost: LostNode | None = None) -> bool:
        """Undo a build and end its row; False when something could not be undone (it will be tried again).

        The caller holds the lease. In place of a `lost` node, what can be undone from here. Safe to repeat.
        """
        owner = str(self.owner)
        keep = self.database.patiently(lambda session: begin_undo(session, build_id, owner, error))
        journal = Journal(self.database, build_id, lost.name if lost else self.config.node.name, owner)
        kept = journal.hold({VOLUME}) if keep else []
        self._undo_pending(journal, "undo", lost)
        left = journal.pending()
        if not left:
            log = self._log(journal, "undo")
            for name in kept:
                log.warning(f"volume {name} is kept for inspection; to remove: {discard_command(build_id)}")
            log.info(f"everything {'else ' if kept else ''}this build made has been undone")
            log.flush()
        waits = lost.waiting_text(left) if lost and left else ""
        again = self.config.node.dead_after
        self.database.patiently(
            lambda session: end_undo(session, journal, complete=not left, waits=waits, again=again)
        )
        return not left

    def undo_rest(self, build_id: str) -> list[str]:
        """Undo what is pending of a build that has ended; returns what could not be. Safe to repeat."""
        journal = Journal(self.database, build_id, self.config.node.name)
        names = journal.pending_names()
        if not names and not journal.has_clients():
            return []
        kill_process_of(build_id)  # it may have been ended without this node's knowing
        failures = self._undo_pending(journal, "discard") if names else []
        if names:
            self.database.patiently(lambda session: tell_what_is_left(session, build_id, failures))
        if failures:
            return failures
        self.database.patiently(journal.close_clients_in)
        if names:
            self._log_removed(journal, names)
        return failures

    def undo_rest_of(self, build_id: str, lost: LostNode) -> None:
        """In place of a lost node, undo what can be undone from here of a build that has ended.

        The caller holds the lease, which is let go. What is left is tried again later, by any node.
        """
        journal = Journal(self.database, build_id, lost.name, str(self.owner))
        before = journal.pending_names()
        failures = self._undo_pending(journal, "discard", lost)
        after = set(journal.pending_names())
        if removed := [name for name in before if name not in after]:
            self._log_removed(journal, removed)
        again = self.config.node.dead_after if failures else timedelta()
        self.database.patiently(lambda session: let_go(session, journal, again))

    def _log_removed(self, journal: Journal, names: Sequence[str]) -> None:
        log = self._log(journal, "discard")
        log.info(f"removed {', '.join(names)}")
        log.flush()

    def _undo_pending(self, journal: Journal, stage: str, lost: LostNode | None = None) -> list[str]:
        deadline = time.monotonic() + self._patience_s
        while (failures := self._undo_once(journal, lost)) and time.monotonic() < deadline:
            time.sleep(UNDO_PAUSE_S)
        log = self._log(journal, stage)
        for failure in failures:
            log.error(f"could not undo {failure}; trying again every minute")
        log.flush()
        return failures

    def _undo_once(self, journal: Journal, lost: LostNode | None) -> list[str]:
        """Returns what failed, one line each."""
        pools = [pool for pool in pools_of(journal) if lost is None or pool in lost.shared_pools]
        # Of a build that has ended, nobody else can have anything on its way.
        unguarded = guard_pools(journal, self.pools, pools) if journal.owner else {}
        known = undoers(self.database, self.pools, self.hypervisor, unguarded)
        last = {VM: known.pop(VM)}  # names the VM until nothing of it is left
        failures = journal.undo(known, lost.may_undo if lost else lambda kind, name: True)
        if all(kind == VM for kind, _ in journal.pending()):
            failures += journal.undo(last)
        return failures

    def _log(self, journal: Journal, stage: str) -> BuildLog:
        limit = self.config.builds.log_limit_bytes
        return BuildLog(self.database, journal.build_id, limit, stage=stage, owner=journal.owner)

    def _pool_secrets(self) -> list[PoolSecret]:
        """What libvirt must know for pools that can be reached; a domain on another one fails to start."""
        secrets = []
        for pool in self.pools.values():
            try:
                secret = pool.secret()
            except PvcError as exc:
                logger.warning("no secret of pool %s for libvirt: %s", pool.name, exc.message)
            else:
                secrets += [secret] if secret else []
        return secrets

    def _pipeline(self, build: Build) -> Pipeline:
        return Pipeline(
            config=self.config,
            database=self.database,
            pools=self.pools,
            hypervisor=self.hypervisor,
            journal=Journal(self.database, build.id, self.config.node.name, str(self.owner)),
            log=BuildLog(
                self.database,
                build.id,
                self.config.builds.log_limit_bytes,
                secrets=secret_texts(build.secrets),
                owner=str(self.owner),
            ),
            plan=build.plan,
            secrets=build.secrets,
            owner=str(self.owner),
        )

    def _succeed(self, pipeline: Pipeline) -> None:
        """Hand everything over to the VM, in one transaction with the end of the build."""

        def succeed(session: Session) -> str:
            build = builds.find_build(session, pipeline.journal.build_id, lock=True)
            if build.state != BuildState.SUCCEEDED:  # else this was committed, and the answer got lost
                builds.find_held(session, build.id, str(self.owner))
                if build.cancel_requested:
                    raise Interrupted
                pipeline.journal.keep_in(session)
                builds.finish_build(build, BuildState.SUCCEEDED)
                builds.drop_retried_secrets(session, build)
                build.status = success_text(build)
            return build.status

        status = self.database.patiently(succeed)
        pipeline.log.owner = None  # nobody holds a build that has ended
        pipeline.log.info(status)

    def _fail(self, pipeline: Pipeline, exc: BaseException) -> None:
        """First the script's own clean-up, then ours; the first error is the one reported."""
        failed_stage = pipeline.log.stage
        vm = pipeline.plan["vm"]["name"]
        in_a_hurry = isinstance(exc, Interrupted)
        if in_a_hurry:
            exc = self._reason_to_end(pipeline.journal.build_id, vm)
        error = describe_failure(exc, vm, failed_stage)
        error["why"] = pipeline.log.mask(error["why"])
        if not isinstance(exc, PvcError):
            logger.exception("build %s failed in a way nobody foresaw", pipeline.journal.build_id)
        pipeline.log.error(builds.describe_error(error))
        pipeline.log.flush()
        if not in_a_hurry and failed_stage != "cleanup":
            pipeline.clean_up_after_failure()
        try:
            pipeline.close()
        except Exception as second:
            pipeline.log.error(f"while closing the sandbox: {second}")
            if isinstance(second, NoSpace):  # the script has only seen that a write failed
                error["hint"] = second.message
        pipeline.log.flush(PATIENCE_S)
        self.undo(pipeline.journal.build_id, error)

    def _reason_to_end(self, build_id: str, vm: str) -> PvcError:
        if self.database.patiently(lambda session: builds.find_build(session, build_id).cancel_requested):
            return Cancelled(f"create VM {vm}", "cancelled by an operator")
        hint = builds.retry_command(build_id)
        return EnvironmentFault(f"create VM {vm}", "the node daemon was stopped", hint)


def begin_undo(session: Session, build_id: str, owner: str, error: Json) -> bool:
    """Whether the volumes are to be kept. Raises LeaseLost."""
    build = builds.find_held(session, build_id, owner)
    builds.begin_undo(build, error)
    return build.keep_on_failure


def end_undo(session: Session, journal: Journal, *, complete: bool, waits: str, again: timedelta) -> None:
    """End the build, or let the lease go: `waits` is for the status then, `again` when another node tries."""
    build = builds.find_build(session, journal.build_id, lock=True)
    if build.lease_owner != journal.owner:
        return  # this was committed, and the answer got lost; or the lease is
    if complete:
        journal.close_clients_in(session)
        cancelled = (build.error or {}).get("kind") == "cancelled"
        builds.finish_build(build, BuildState.CANCELLED if cancelled else BuildState.FAILED)
    else:
        let_go(session, journal, again)
        build.status = f"{build.status}; {waits}" if waits else build.status


def tell_what_is_left(session: Session, build_id: str, failures: Sequence[str]) -> None:
    """The status of a build that has ended says what of it could not be removed, and why."""
    build = builds.find_build(session, build_id, lock=True)
    if build.error:
        left = f"; not removed yet: {'; '.join(failures)}"[:MOST_STATUS] if failures else ""
        build.status = f"{builds.describe_error(build.error)}{left}"


def let_go(session: Session, journal: Journal, again: timedelta) -> None:
    """This process works on the build no more; another may, and another node `again` after this."""
    build = builds.find_build(session, journal.build_id, lock=True)
    if build.lease_owner == journal.owner:
        journal.close_clients_in(session, ProcessIdentity.current().text)
        build.lease_owner = None
        build.lease_until = database_now(session) + again


def kill_process_of(build_id: str) -> None:
    """End the process of a build, wherever it stands; there is none as a rule. Raises Busy."""
    words = f"\0pvcnoded.build\0{build_id}\0".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.stat().st_uid == 0 and words in Path(entry.path, "cmdline").read_bytes():
                process = Owner.of(int(entry.name))
                logger.warning("build %s has ended; killing its process %d", build_id, process.pid)
                process.kill()


def secret_texts(secrets: Json) -> tuple[str, ...]:
    """What must not show in a log, longest first. Shorter texts would only shred it."""
    listed = (value if isinstance(value, list) else [value] for value in secrets.values())
    texts = [str(value) for values in listed for value in values if len(str(value)) >= SHORTEST_SECRET]
    return tuple(sorted(texts, key=len, reverse=True))


def describe_failure(exc: BaseException, vm: str, stage: str) -> Json:
    """An exception as the row's error: {kind, what, why, hint, stage}."""
    known = exc if isinstance(exc, PvcError) else Internal(f"create VM {vm}", f"{type(exc).__name__}: {exc}")
    return {
        "kind": known.kind.value,
        "what": clean(known.what),
        "why": clean(known.why),
        "hint": clean(known.hint),
        "stage": stage,
    }


def success_text(build: Build) -> str:
    verb = "running" if build.plan["start"] else "defined" if build.plan["define"] else "provisioned"
    return f"VM {build.vm} is {verb} on node {build.node}"


class Interrupted(BaseException):
    """The build shall end. Not an Exception: nothing on the way may take it for an error of its own."""


class interruptible:
    """While the block runs, SIGTERM raises Interrupted, once.

    Outside of it SIGTERM is ignored, so that an undo under way is not cut short.
    """

    def __enter__(self) -> None:
        signal.signal(signal.SIGTERM, self._raise)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted


def tell_parent_it_is_taken() -> None:
    """Close standard output, on which the worker waits before it starts the next build."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def die_with_parent(expected_parent: int) -> None:
    """Have the kernel kill this process when its parent ends, and end now if that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected_parent:
        os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one build (started by the worker).")
    parser.add_argument("build")
    parser.add_argument("--config")
    parser.add_argument("--parent", type=int, required=True, help="pid this process must not outlive")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        config = load_config(options.config)
        BuildProcess(config, Database(config.database), PATIENCE_S).run(options.build)
    except PvcError as exc:
        logger.error("build %s: %s", options.build, exc.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
