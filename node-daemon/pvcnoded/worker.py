"""The node's Celery workers: `python3 -m pvcnoded.worker builds|commands`.

One takes builds from the node's queue and runs each in a process of its own; the other answers short
commands of the API, so that those never wait behind builds.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from pvccommon import builds, queue
from pvccommon.config import Config, load_config
from pvccommon.database import Database
from pvccommon.errors import PvcError
from pvcnoded.build import BuildProcess, die_with_parent
from pvcnoded.build_commands import BuildCommands
from pvcnoded.command import Verbs, answer_command
from pvcnoded.content_commands import ContentCommands
from pvcnoded.image_commands import ImageCommands
from pvcnoded.imports.imports import Imports
from pvcnoded.orphan_commands import OrphanCommands
from pvcnoded.pool_commands import PoolCommands
from pvcnoded.slow_commands import SlowCommands, store_answer
from pvcnoded.snapshot_commands import SnapshotCommands
from pvcnoded.sweeper import Sweeper
from pvcnoded.transfers import Transfers
from pvcnoded.vm_commands import VmCommands
from pvcnoded.volume_commands import VolumeCommands

COMMAND_THREADS = 8
LOOK_EVERY_S = 5.0
WAITED_TOO_LONG = timedelta(seconds=20)
WAKE_EVERY_S = 0.1
END_IMPORTS_S = 10.0  # what has not ended by then, the sweeper removes
logger = logging.getLogger("pvc.worker")


class BuildRunner:
    """Runs builds as child processes, each in its own session; they die with this process."""

    def __init__(self, config: Config, config_path: str | None) -> None:
        self._config_path = config_path
        self._node = config.node.name
        process = BuildProcess(config, Database(config.database))
        self._database = process.database
        self._sweeper = Sweeper(process)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._turn = threading.Lock()
        self._free = threading.BoundedSemaphore(config.builds.concurrency)
        self._ending = threading.Event()

    def run_next(self) -> None:
        """Run the build that has waited longest to its end; what its process left undone is undone here.

        A message only says that there is work: messages can overtake each other, or come twice.
        """
        with self._free:
            self._run_next()

    def look_for_forgotten(self) -> None:
        """Run builds that wait although they could run: no message says so, or nobody reads the messages.

        After Redis was killed, Celery 5.2 has been seen connected again, and idle before a full queue.
        """
        while not self._ending.wait(LOOK_EVERY_S):
            try:
                if self._is_one_forgotten():
                    threading.Thread(target=self._run_forgotten, daemon=True).start()
            except PvcError as exc:
                logger.error("looking for builds that wait: %s", exc.message)

    def _is_one_forgotten(self) -> bool:
        with self._database.session() as session:
            return bool(builds.waiting_since(session, self._node, WAITED_TOO_LONG))

    def _run_forgotten(self) -> None:
        if not self._free.acquire(blocking=False):
            return  # it has to wait
        try:
            logger.warning("a build waits, and no message came: running it")
            self._run_next()
        except PvcError as exc:
            logger.error("a build that waits: %s", exc.message)
        finally:
            self._free.release()

    def _run_next(self) -> None:
        with self._turn:
            with self._database.session() as session:
                build_id = builds.longest_waiting(session, self._node)
            if build_id is None:
                return
            child = self._start(build_id)
        try:
            returncode = child.wait()
        finally:
            self._children.discard(child)
        if returncode != 0:
            logger.warning("build %s: its process ended with %d", build_id, returncode)
        self._sweeper.recover_if_dead(build_id)

    def _start(self, build_id: str) -> "subprocess.Popen[bytes]":
        """Start the build's process; returns when that has taken the build, or has ended."""
        argv = [sys.executable, "-m", "pvcnoded.build", build_id, "--parent", str(os.getpid())]
        if self._config_path:
            argv += ["--config", self._config_path]
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        self._children.add(child)
        assert child.stdout is not None
        with child.stdout as closed_when_taken:
            closed_when_taken.read()
        return child

    def end_all(self) -> None:
        """Ask all builds under way to end; each undoes itself."""
        self._ending.set()
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)


def serve_builds(app: Celery, config: Config, config_path: str | None) -> None:
    runner = BuildRunner(config, config_path)

    def build(build_id: str) -> None:
        try:
            runner.run_next()
        except PvcError as exc:  # the row stays as it is; the sweeper sees to it
            logger.error("build %s was announced: %s", build_id, exc.message)

    app.task(build, name=queue.BUILD_TASK, acks_late=True, ignore_result=True)

    def end_builds(**_: object) -> None:
        runner.end_all()

    worker_shutting_down.connect(end_builds, weak=False)
    threading.Thread(target=runner.look_for_forgotten, daemon=True).start()
    _work(app, "builds", queue.build_queue(config.node.name), config.node.name, config.builds.concurrency)


def serve_commands(app: Celery, config: Config) -> None:
    process = BuildProcess(config, Database(config.database))
    volumes, snapshots = VolumeCommands(process.pools), SnapshotCommands(process.pools)
    transfers = Transfers(config.node)
    content = ContentCommands(process.pools, transfers)
    pools = PoolCommands(process.pools, config.storage.ceph)
    imports = Imports(config.images, process.database, process.pools, process.owner)
    images = ImageCommands(
        process.database, process.pools, imports, transfers, dead_after=config.node.dead_after
    )
    verbs: Verbs = {
        **VmCommands(process).verbs(),
        **BuildCommands(process).verbs(),
        **OrphanCommands(process).verbs(),
        **volumes.verbs(),
        **snapshots.verbs(),
        **content.verbs(),
        **pools.verbs(),
        **images.verbs(),
    }
    slow_verbs: Verbs = {
        **volumes.slow_verbs(),
        **snapshots.slow_verbs(),
        **pools.slow_verbs(),
        **images.slow_verbs(),
    }
    slow = SlowCommands()

    def end_imports(**_: object) -> None:
        imports.end_all(END_IMPORTS_S)

    worker_shutting_down.connect(end_imports, weak=False)
    threading.Thread(target=imports.watch, name="imports", daemon=True).start()

    def command(task: Any, verb: str, arguments: dict[str, Any]) -> None:
        if verb in slow_verbs:
            slow.take_over(task, verb, lambda: answer_command(slow_verbs, verb, arguments))
        else:
            store_answer(task.backend, str(task.request.id), answer_command(verbs, verb, arguments))

    app.task(command, bind=True, name=queue.COMMAND_TASK, acks_late=False, ignore_result=True)
    _work(app, "commands", queue.command_queue(config.node.name), config.node.name, COMMAND_THREADS)


def _work(app: Celery, kind: str, queue_name: str, node: str, threads: int) -> None:
    worker = app.Worker(
        hostname=f"{kind}@{node}",
        queues=[queue_name],
        pool="threads",
        concurrency=threads,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker_ready.connect(_keep_awake, weak=False)
    worker.start()


def _keep_awake(sender: Any, **_: object) -> None:
    """Wake the worker's loop regularly.

    With a pool of threads and late acknowledgement, Celery 5.2 leaves its loop asleep when a thread that was
    the last free one ends: the next message waits until some timer fires, for up to ten seconds.
    """
    sender.hub.call_repeatedly(WAKE_EVERY_S, lambda: None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A Celery worker of this node (started by pvc-node serve).")
    parser.add_argument("kind", choices=("builds", "commands"))
    parser.add_argument("--config")
    parser.add_argument("--parent", type=int, required=True, help="pid this process must not outlive")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config = load_config(options.config)
    app = queue.create_celery(config.queue)
    if options.kind == "builds":
        serve_builds(app, config, options.config)
    else:
        serve_commands(app, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
