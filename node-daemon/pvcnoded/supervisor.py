"""The node daemon's main process: heartbeat, sweeper, and the two Celery workers as its children."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from pvccommon import queue
from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.errors import PvcError
from pvcnoded.build import BuildProcess
from pvcnoded.heartbeat import Heartbeat
from pvcnoded.lost_nodes import LostNodes
from pvcnoded.media import Media
from pvcnoded.sweeper import Sweeper

SWEEP_EVERY_S = 60
RESEND_EVERY_S = 10
LOOKS_BEFORE_DEAD = 4
LOOK_AT_QUEUE_EVERY_S = 5
UNREAD_S = 25.0  # less than callers wait for an answer
WORKERS = ("builds", "commands")
STOP_TIMEOUT_S = 60
RESTART_PAUSE_S = 2
logger = logging.getLogger("pvc.node")


class Supervisor:
    """Runs until SIGTERM. Children die with it, however it ends."""

    def __init__(self, config: Config, config_path: str | None) -> None:
        self._config_path = config_path
        process = BuildProcess(config, Database(config.database))
        self._database = process.database
        self._node = config.node.name
        self._heartbeat = Heartbeat(process)
        self._media = Media(config, process.database, process.pools, process.hypervisor)
        self._heartbeat_s = config.node.heartbeat_s
        self._sweeper = Sweeper(process)
        self._celery = queue.create_celery(config.queue)
        self._lost_nodes = LostNodes(process, self._celery)
        self._dead_after_s = config.node.dead_after_s
        self._look_every_s = config.node.dead_after_s / LOOKS_BEFORE_DEAD
        self._unread: tuple[bytes, float] | None = None  # the command that is next, and since when
        self._last_beat = 0.0  # by a clock that goes on while the machine sleeps
        self._stopping = threading.Event()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Sweep, then serve. Raises EnvironmentFault at the start when the database is not fit."""
        self._database.require_migrated()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        self._sweeper.sweep()
        self._heartbeat.beat()
        periodic = (
            (SWEEP_EVERY_S, self._sweep),
            (RESEND_EVERY_S, self._resend),
            (self._heartbeat_s, self._media.look_after),
            (self._look_every_s, self._look_at_lost_nodes),
            (LOOK_AT_QUEUE_EVERY_S, self._look_at_commands),
        )
        for period_s, action in periodic:
            threading.Thread(target=self._every, args=(period_s, action), daemon=True).start()
        try:
            self._every(self._heartbeat_s, self._beat, tick_s=0.5)
        finally:
            self._stop_children()
            self._attempt("say goodbye", self._heartbeat.say_goodbye)

    def _every(self, period_s: float, action: Callable[[], None], tick_s: float = 5) -> None:
        """Do the action each period until the end; a failing one is logged and tried again."""
        due = 0.0
        while not self._stopping.is_set():
            if threading.current_thread() is threading.main_thread():
                self._watch_children()
            if time.monotonic() >= due:
                self._attempt(action.__name__.strip("_"), action)
                due = time.monotonic() + period_s
            self._stopping.wait(min(tick_s, period_s))

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except PvcError as exc:
            logger.error("%s: %s", what, exc.message)
        except Exception:
            logger.exception("%s failed", what)

    def _beat(self) -> None:
        before = self._last_beat
        self._heartbeat.beat()
        self._last_beat = time.clock_gettime(time.CLOCK_BOOTTIME)
        if before and self._last_beat - before > self._dead_after_s:
            logger.warning("not heard of for %d s: others took this node for dead", self._last_beat - before)
            self._attempt("sweep", self._sweeper.sweep)

    def _sweep(self) -> None:
        self._sweeper.sweep()

    def _resend(self) -> None:
        self._sweeper.resend(self._celery)

    def _look_at_lost_nodes(self) -> None:
        self._lost_nodes.look()

    def _look_at_commands(self) -> None:
        """End the worker that answers commands when it reads none; it is started again then.

        After Redis was killed, Celery 5.2 has been seen connected again, and idle before a full queue.
        """
        oldest = queue.oldest_task(self._celery, queue.command_queue(self._node))
        now = time.monotonic()
        if oldest is None or self._unread is None or self._unread[0] != oldest:
            self._unread = (oldest, now) if oldest is not None else None
        elif now - self._unread[1] > UNREAD_S:
            logger.error("the commands worker has read nothing for %d s; ending it", UNREAD_S)
            self._unread = None
            self._children["commands"].kill()

    def _watch_children(self) -> None:
        """Start the workers, and start one again that has ended."""
        for kind in WORKERS:
            child = self._children.get(kind)
            if child is not None and child.poll() is None:
                continue
            if child is not None:
                logger.error("the %s worker ended with %d; starting it again", kind, child.returncode)
                self._attempt("sweep", self._sweeper.sweep)
                self._stopping.wait(RESTART_PAUSE_S)
            self._children[kind] = self._start_worker(kind)

    def _start_worker(self, kind: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "pvcnoded.worker", kind, "--parent", str(os.getpid())]
        if self._config_path:
            argv += ["--config", self._config_path]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)

    def _stop_children(self) -> None:
        """Ask the workers to end (builds under way undo themselves), then make them."""
        for child in self._children.values():
            child.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for kind, child in self._children.items():
            try:
                child.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("the %s worker does not end; killing it", kind)
                child.kill()
                child.wait()
