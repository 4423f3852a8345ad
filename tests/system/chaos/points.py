"""The moments of a build at which a fault strikes, and how a build is stopped exactly there.

Inside a stage the script itself waits for a signal. In front of a line of the journal (and of the start) the
database does: a trigger waits for a lock that the test holds. Production code knows nothing of either.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
from cluster import Cluster, processes

from chaos.builders import HERE
from pvcnoded.journal import CLIENT

ARRIVAL_S = 150  # debootstrap is half way after a minute on a slow machine
LOCK = 7_210
INSTALL = """
CREATE TABLE IF NOT EXISTS chaos_brake (word text PRIMARY KEY);
CREATE OR REPLACE FUNCTION chaos_wait() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE here text[];
BEGIN
    IF TG_TABLE_NAME = 'resource' THEN
        here := ARRAY[NEW.seq || ' ' || NEW.state, NEW.kind || ' ' || NEW.state];
    ELSE
        here := ARRAY[NEW.stage];
    END IF;
    IF EXISTS (SELECT FROM chaos_brake WHERE word = ANY (here)) THEN
        PERFORM pg_advisory_xact_lock(%(lock)s);
    END IF;
    RETURN NEW;
END $$;
DROP TRIGGER IF EXISTS chaos_wait ON resource;
CREATE TRIGGER chaos_wait BEFORE INSERT OR UPDATE OF state ON resource
    FOR EACH ROW EXECUTE FUNCTION chaos_wait();
DROP TRIGGER IF EXISTS chaos_wait ON build;
CREATE TRIGGER chaos_wait BEFORE UPDATE OF stage ON build
    FOR EACH ROW WHEN (NEW.stage IS DISTINCT FROM OLD.stage) EXECUTE FUNCTION chaos_wait();
"""
REMOVE = """
DROP TRIGGER IF EXISTS chaos_wait ON resource;
DROP TRIGGER IF EXISTS chaos_wait ON build;
DROP FUNCTION IF EXISTS chaos_wait();
DROP TABLE IF EXISTS chaos_brake;
"""
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %(lock)s AND NOT granted"


@dataclass(frozen=True)
class Point:
    """`kind` is `stage`, `start` or `journal`; `word` says which: a stage, or line and state ("3 made").

    A line is told by its number or by the kind of what it is about.

    `name` is for people. At "3 intended" the third line is about to be written, nothing was made yet; at
    "3 made" the thing is there and the journal does not say so yet; at "vm kept" the VM is finished and the
    build not.
    """

    name: str
    kind: str
    word: str

    @property
    def stage(self) -> str:
        """The stage in which the script waits; empty when the database does."""
        return self.word if self.kind == "stage" else ""


class Brake:
    """The database's side; a context manager. The lock is this connection's, and goes with it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._connection: Any = None

    def __enter__(self) -> "Brake":
        self._connect()
        self._do(INSTALL)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._do(REMOVE)
        self._connection.close()

    def arm(self, word: str) -> None:
        """From now on, who writes this waits."""
        self._do("SELECT pg_advisory_lock(%(lock)s)")
        self._do("INSERT INTO chaos_brake VALUES (%(word)s)", word=word)

    def has_stopped_somebody(self) -> bool:
        with self._connection.cursor() as cursor:
            cursor.execute(WAITING, {"lock": LOCK})
            return bool(cursor.fetchone()[0])

    def release(self) -> None:
        """Let go whoever waits; a server that was restarted has done so itself."""
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
            self._do("DELETE FROM chaos_brake")
            self._do("SELECT pg_advisory_unlock_all()")
            return
        with suppress(psycopg2.OperationalError):
            self._connect()
            self._do("DELETE FROM chaos_brake")

    def _do(self, statement: str, **values: Any) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, {"lock": LOCK, **values})

    def _connect(self) -> None:
        url = self._cluster.database.engine.url
        self._connection = psycopg2.connect(
            host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database
        )
        self._connection.autocommit = True


def wait_until_there(cluster: Cluster, brake: Brake, point: Point, task: str) -> None:
    """Until the build stands at the point. Raises TimeoutError, or RuntimeError when it ended before."""
    deadline = time.monotonic() + ARRIVAL_S
    while not (brake.has_stopped_somebody() if not point.stage else says_here(cluster, point, task)):
        state = cluster.get(f"/tasks/{task}")
        if state["build_state"] in ("succeeded", "failed", "cancelled"):
            raise RuntimeError(f"ended before {point.name}: {state['status']}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not at {point.name} after {ARRIVAL_S} s: {state['status']}")
        time.sleep(0.05)


def says_here(cluster: Cluster, point: Point, task: str) -> bool:
    return f"{point.stage} info {HERE}" in cluster.log(task)


def let_go(cluster: Cluster, brake: Brake, point: Point) -> None:
    """The build goes on, if there is still one."""
    if not point.stage:
        brake.release()
        return
    for pid, line in processes().items():
        if "vmbuilder.runner" in line and line.startswith("/usr/bin/python3") and cluster.is_ours(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)


STAGE_POINTS = tuple(
    Point(stage, "stage", stage) for stage in ("load", "setup", "create", "prepare", "install", "cleanup")
)
START_POINT = Point("start", "start", "start")
END_POINT = Point("end", "journal", "vm kept")


def journal_points(lines: list[tuple[int, str]]) -> list[Point]:
    """Two for each line of a journal: about to be written, and about to be noted as made.

    Nothing is made for a line about a client.
    """
    return [
        Point(f"{seq} {what}: {said}", "journal", f"{seq} {word}")
        for seq, what in lines
        for word, said in (("intended", "intent"), ("made", "made"))
        if (what, word) != (CLIENT, "made")
    ]
