"""run(): the one place where programs are started."""

import os
import signal
import time
from pathlib import Path

import pytest

from pvccommon.run import CommandFailed, CommandNotFound, CommandTimedOut, run


def test_output_is_returned_and_logged_line_by_line() -> None:
    seen: list[str] = []
    done = run(["sh", "-c", "echo out; echo err >&2; printf last"], timeout_s=10, log=seen.append)
    assert (done.stdout, done.stderr) == ("out\nlast", "err\n")
    assert seen[0] == "$ sh -c 'echo out; echo err >&2; printf last'"
    assert sorted(seen[1:]) == ["err", "last", "out"]


def test_input_larger_than_a_pipe_is_fed() -> None:
    text = "x" * 1_000_000
    assert run(["cat"], timeout_s=10, input=text).stdout == text


def test_without_input_stdin_is_empty() -> None:
    assert run(["cat"], timeout_s=10).stdout == ""


def test_bad_bytes_are_replaced() -> None:
    assert run(["printf", r"a\377b"], timeout_s=10).stdout == "a\ufffdb"


def test_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_SECRET_OF_PARENT", "x")
    printed = run(["env"], timeout_s=10, env={"EXTRA": "1"}).stdout
    assert "PVC_SECRET_OF_PARENT" not in printed
    assert "EXTRA=1" in printed and "LANG=C.UTF-8" in printed


def test_unaccepted_exit_code_raises_with_the_tail_of_stderr() -> None:
    with pytest.raises(CommandFailed, match=r"exited 3 .*: why it failed") as caught:
        run(["sh", "-c", "echo why it failed >&2; exit 3"], timeout_s=10)
    assert caught.value.returncode == 3


def test_accepted_exit_code_is_returned() -> None:
    assert run(["sh", "-c", "exit 3"], timeout_s=10, ok=(0, 3)).returncode == 3


def test_death_by_signal_is_named() -> None:
    with pytest.raises(CommandFailed, match="ended by SIGKILL"):
        run(["sh", "-c", "kill -9 $$"], timeout_s=10)


def test_missing_program_is_a_kind_of_its_own() -> None:
    with pytest.raises(CommandNotFound, match="No such file"):
        run(["/nonexistent/program"], timeout_s=10)


def test_timeout_ends_grandchildren_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; sleep 300 & echo $! > {pid_file}; sleep 300"
    started = time.monotonic()
    with pytest.raises(CommandTimedOut, match=r"not done after 0\.5 s"):
        run(["sh", "-c", script], timeout_s=0.5)
    assert time.monotonic() - started < 8
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_grandchild_that_keeps_the_pipe_open_is_not_waited_for() -> None:
    started = time.monotonic()
    done = run(["sh", "-c", "sleep 20 & echo $!"], timeout_s=15)
    assert time.monotonic() - started < 5
    os.kill(int(done.stdout), signal.SIGKILL)


def test_exception_of_the_log_ends_the_program() -> None:
    def refuse(line: str) -> None:
        if not line.startswith("$"):
            raise RuntimeError("log is full")

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="log is full"):
        run(["sh", "-c", "echo line; sleep 60"], timeout_s=100, log=refuse)
    assert time.monotonic() - started < 8


def test_secrets_reach_neither_log_nor_error() -> None:
    seen: list[str] = []
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo hunter2 >&2; exit 1"], timeout_s=10, log=seen.append, secrets=["hunter2"])
    assert "hunter2" not in str(caught.value) + "".join(seen)
    assert "<redacted>" in str(caught.value)
