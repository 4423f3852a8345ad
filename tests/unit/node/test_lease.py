"""Knowing a process beyond doubt."""

import subprocess
import time

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
