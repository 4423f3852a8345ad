"""Knowing a process beyond doubt."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pvcnoded.lease import Owner, boot_id, start_time


def test_this_process_is_alive() -> None:
    owner = Owner.myself("hv1")
    assert owner.is_alive()
    assert Owner.parse(str(owner)) == owner


def test_ended_process_is_dead() -> None:
    child = subprocess.Popen(["sleep", "60"])
    owner = Owner("hv1", boot_id(), child.pid, start_time(child.pid) or 0)
    assert owner.is_alive()
    child.kill()
    assert _soon_dead(owner), "a zombie counts as dead"
    child.wait()
    assert not owner.is_alive()


def _soon_dead(owner: Owner) -> bool:
    deadline = time.monotonic() + 5
    while owner.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not owner.is_alive()


def test_reused_pid_and_other_boot_are_dead() -> None:
    owner = Owner.myself("hv1")
    assert not Owner("hv1", owner.boot, owner.pid, owner.started + 1).is_alive()
    assert not Owner("hv1", "another-boot", owner.pid, owner.started).is_alive()


def test_an_owner_is_killed_and_a_stranger_with_its_pid_is_not() -> None:
    child = subprocess.Popen(["sleep", "60"])
    owner = Owner("hv1", boot_id(), child.pid, start_time(child.pid) or 0)
    Owner("hv1", boot_id(), child.pid, owner.started - 1).kill()
    assert owner.is_alive()
    owner.kill()
    assert child.wait(timeout=5) == -signal.SIGKILL
    owner.kill()


KEEPER = """
import sys, time
from contextlib import contextmanager
from datetime import timedelta
from pvccommon.errors import EnvironmentFault
from pvcnoded.lease import LeaseKeeper, Owner

class Database:
    @contextmanager
    def session(self):
        {session}
        yield

with LeaseKeeper(Database(), "b1", Owner.myself("hv1"), timedelta(seconds={lease_s}), time.monotonic()):
    print("holding", flush=True)
    while True:
        print("working", flush=True)
        time.sleep(0.01)
"""
DOWN = "raise EnvironmentFault('use the database', 'down')"
HANGS = "time.sleep(600)"


@contextmanager
def lease_held(
    tmp_path: Path, session: str, lease_s: float
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A process that holds a lease and writes to a file all the time."""
    output = tmp_path / "output"
    program = KEEPER.format(session=session, lease_s=lease_s)
    with output.open("wb") as file:
        child = subprocess.Popen([sys.executable, "-c", program], stdout=file, env=code_path())
    try:
        deadline = time.monotonic() + 10
        while b"holding" not in output.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield child, output
    finally:
        child.kill()
        child.wait()


def code_path() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}


@pytest.mark.parametrize("session", [DOWN, HANGS])
def test_process_ends_when_its_lease_runs_out(tmp_path: Path, session: str) -> None:
    """Be it that the database is down, or that it says nothing."""
    with lease_held(tmp_path, session, lease_s=0.5) as (child, _):
        assert child.wait(timeout=5) == -signal.SIGALRM


def test_stopped_process_that_goes_on_after_its_lease_ran_out_does_nothing_more(tmp_path: Path) -> None:
    with lease_held(tmp_path, DOWN, lease_s=1) as (child, output):
        child.send_signal(signal.SIGSTOP)
        time.sleep(1.2)  # the lease itself: nothing tells when it has run out
        assert child.poll() is None, "it is stopped"
        before = output.read_bytes()
        child.send_signal(signal.SIGCONT)
        assert child.wait(timeout=5) == -signal.SIGALRM
        assert output.read_bytes() == before
