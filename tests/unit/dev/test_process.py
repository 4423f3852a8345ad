"""A process is known by pid and start time."""

import dataclasses
import os
from pathlib import Path

from devstack import process
from devstack.process import Process


def test_living_process_is_recognised() -> None:
    assert Process.current().alive


def test_reused_pid_or_another_boot_is_not_the_process() -> None:
    known = Process.current()
    assert not dataclasses.replace(known, started_ticks=known.started_ticks + 1).alive
    assert not dataclasses.replace(known, boot="another").alive


def test_zombie_is_not_alive() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert process._started_ticks(pid) is None
    finally:
        os.waitpid(pid, 0)


def test_record_is_kept_and_a_broken_one_is_none(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    Process.current().save(record)
    assert Process.load_or_none(record) == Process.current()
    record.write_text("{")
    assert Process.load_or_none(record) is None
    assert Process.load_or_none(tmp_path / "absent") is None


def test_ending_what_is_gone_does_nothing() -> None:
    known = dataclasses.replace(Process.current(), started_ticks=1)
    process.end(known, first=process.signal.SIGTERM, timeout_s=0.1)
    process.end_all([])
