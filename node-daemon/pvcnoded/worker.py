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
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from pvccommon import queue
from pvccommon.config import Config, load_config
from pvccommon.database import Database
from pvccommon.errors import Internal, PvcError
from pvcnoded.build import BuildProcess, die_with_parent
from pvcnoded.commands import Commands
from pvcnoded.sweeper import Sweeper

COMMAND_THREADS = 8
WAKE_EVERY_S = 0.1
logger = logging.getLogger("pvc.worker")


class BuildRunner:
    """Runs builds as child processes, each in its own session; they die with this process."""

    def __init__(self, config: Config, config_path: str | None) -> None:
        self._config_path = config_path
        self._sweeper = Sweeper(BuildProcess(config, Database(config.database)))
        self._children: set[subprocess.Popen[bytes]] = set()

    def run(self, build_id: str) -> None:
        """Run one build to its end; whatever the child left undone is undone here."""
        if not self._sweeper.is_waiting(build_id):
            return
        argv = [sys.executable, "-m", "pvcnoded.build", build_id, "--parent", str(os.getpid())]
        if self._config_path:
            argv += ["--config", self._config_path]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        self._children.add(child)
        try:
            returncode = child.wait()
        finally:
            self._children.discard(child)
        if returncode != 0:
            logger.warning("build %s: its process ended with %d", build_id, returncode)
        self._sweeper.recover_if_dead(build_id)

    def end_all(self) -> None:
        """Ask all builds under way to end; each undoes itself."""
        for child in list(self._children):
            child.send_signal(signal.SIGTERM)


def serve_builds(app: Celery, config: Config, config_path: str | None) -> None:
    runner = BuildRunner(config, config_path)

    def build(build_id: str) -> None:
        try:
            runner.run(build_id)
        except PvcError as exc:  # the row stays as it is; the sweeper sees to it
            logger.error("build %s: %s", build_id, exc.message)

    app.task(build, name=queue.BUILD_TASK, acks_late=True, ignore_result=True)

    def end_builds(**_: object) -> None:
        runner.end_all()

    worker_shutting_down.connect(end_builds, weak=False)
    _work(app, "builds", queue.build_queue(config.node.name), config.node.name, config.builds.concurrency)


def serve_commands(app: Celery, config: Config) -> None:
    commands = Commands(BuildProcess(config, Database(config.database)))

    def command(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """{"result": …} or {"error": PvcError.to_dict()}."""
        try:
            return {"result": commands.run(verb, arguments)}
        except PvcError as exc:
            return {"error": exc.to_dict()}
        except Exception as exc:
            logger.exception("command %s failed", verb)
            return {"error": Internal(f"run {verb}", f"{type(exc).__name__}: {exc}").to_dict()}

    app.task(command, name=queue.COMMAND_TASK, acks_late=False, ignore_result=False)
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
