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
from collections.abc import Mapping
from datetime import timedelta
from types import FrameType

from pvccommon import builds
from pvccommon.config import Config, load_config
from pvccommon.database import Database
from pvccommon.errors import Cancelled, EnvironmentFault, Internal, PvcError
from pvccommon.models import Build, BuildState, Json
from pvccommon.storage import pools_from_config
from pvccommon.storage.pool import PoolSecret, StoragePool
from pvcnoded.build_log import BuildLog, clean
from pvcnoded.hypervisor import Hypervisor
from pvcnoded.journal import Journal
from pvcnoded.lease import LeaseKeeper, Owner
from pvcnoded.pipeline import Pipeline
from pvcnoded.undo import undoers

PR_SET_PDEATHSIG = 1
SHORTEST_SECRET = 4
logger = logging.getLogger("pvc.build")


class BuildProcess:
    """What a build needs of this node: made once for each process, also by the sweeper for its undo."""

    def __init__(self, config: Config, database: Database) -> None:
        self.config = config
        self.database = database
        self.owner = Owner.myself(config.node.name)
        self.lease = timedelta(seconds=config.builds.lease_s)
        self.pools: Mapping[str, StoragePool] = pools_from_config(config)
        self.hypervisor = Hypervisor(
            config.hypervisor.libvirt_uri, config.hypervisor.console_directory, self._pool_secrets
        )

    def run(self, build_id: str) -> None:
        """Run a waiting build to its end. A build that is taken, or has ended, is left alone."""
        with self.database.session() as session:
            build = builds.take_build(session, build_id, str(self.owner), self.lease)
        if build is None:
            logger.info("build %s is taken or has ended; nothing to do", build_id)
            return
        with LeaseKeeper(self.database, build_id, self.owner, self.lease):
            pipeline = self._pipeline(build)
            try:
                with interruptible():
                    pipeline.run()
                self._succeed(pipeline)
            except BaseException as exc:
                self._fail(pipeline, exc)
                if not isinstance(exc, Exception | Interrupted):
                    raise
            finally:
                pipeline.log.flush()

    def undo(self, build_id: str, error: Json) -> bool:
        """Undo a build and end its row; False when something could not be undone (it will be tried again).

        The caller holds the lease. Safe to repeat.
        """
        with self.database.session() as session:
            build = builds.find_build(session, build_id, lock=True)
            builds.begin_undo(build, error)
        log = BuildLog(self.database, build_id, self.config.builds.log_limit_bytes, stage="undo")
        journal = Journal(self.database, build_id, self.config.node.name)
        failures = journal.undo(undoers(self.database, self.pools, self.hypervisor))
        for failure in failures:
            log.error(f"could not undo {failure}; trying again every minute")
        if not failures:
            log.info("everything this build made has been undone")
        log.flush()
        with self.database.session() as session:
            build = builds.find_build(session, build_id, lock=True)
            if failures:
                build.lease_owner = None  # so that the next sweep, by whatever process, tries again
                return False
            cancelled = (build.error or {}).get("kind") == "cancelled"
            builds.finish_build(build, BuildState.CANCELLED if cancelled else BuildState.FAILED)
        return True

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
            journal=Journal(self.database, build.id, self.config.node.name),
            log=BuildLog(
                self.database,
                build.id,
                self.config.builds.log_limit_bytes,
                secrets=secret_texts(build.secrets),
            ),
            plan=build.plan,
            secrets=build.secrets,
        )

    def _succeed(self, pipeline: Pipeline) -> None:
        """Hand everything over to the VM, in one transaction with the end of the build."""
        with self.database.session() as session:
            build = builds.find_build(session, pipeline.journal.build_id, lock=True)
            if build.cancel_requested:
                raise Interrupted
            pipeline.journal.keep_in(session)
            builds.finish_build(build, BuildState.SUCCEEDED)
            build.status = success_text(build)
            pipeline.log.info(build.status)

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
        pipeline.log.flush()
        self.undo(pipeline.journal.build_id, error)

    def _reason_to_end(self, build_id: str, vm: str) -> PvcError:
        with self.database.session() as session:
            cancelled = builds.find_build(session, build_id).cancel_requested
        if cancelled:
            return Cancelled(f"create VM {vm}", "cancelled by an operator")
        return EnvironmentFault(f"create VM {vm}", "the node daemon was stopped", "run the same create again")


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
        BuildProcess(config, Database(config.database)).run(options.build)
    except PvcError as exc:
        logger.error("build %s: %s", options.build, exc.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
