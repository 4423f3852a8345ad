"""Running programs: real processes, small ones."""

import time
from pathlib import Path

import pytest

from vmbuilder.apt_progress import AptProgress
from vmbuilder.command import run
from vmbuilder.errors import CommandFailed


def test_input_output_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "1")
    done = run(["sh", "-c", "cat; env; echo bad >&2"], input="some\ntext\n", env={"MORE": "x"}, timeout_s=10)
    assert done.stdout.startswith("some\ntext\n")
    assert "MORE=x" in done.stdout
    assert "LANG=C.UTF-8" in done.stdout
    assert "SECRET" not in done.stdout
    assert done.stderr == "bad\n"


def test_large_input_to_a_program_that_does_not_read_it() -> None:
    assert run(["true"], input="x" * 1_000_000, timeout_s=10).returncode == 0


def test_failure_tells_code_and_last_lines() -> None:
    with pytest.raises(CommandFailed, match=r"sh exited with 3: first / last") as failed:
        run(["sh", "-c", "echo first; sleep 0.1; echo last >&2; exit 3"], timeout_s=10)
    assert failed.value.returncode == 3


def test_signal_is_named() -> None:
    with pytest.raises(CommandFailed, match="was ended by SIGKILL"):
        run(["sh", "-c", "kill -9 $$"], timeout_s=10)


def test_accepted_exit_codes() -> None:
    assert run(["sh", "-c", "exit 2"], ok=(0, 2), timeout_s=10).returncode == 2


def test_too_slow_a_program_is_ended_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match=r"took longer than 0.3 s"):
        run(["sh", "-c", f"(sleep 2; touch {tmp_path}/late) & sleep 60"], timeout_s=0.3)
    assert time.monotonic() - started < 5
    time.sleep(2.2)
    assert not (tmp_path / "late").exists()


def test_daemon_that_keeps_the_output_open_does_not_hold_up_the_build() -> None:
    started = time.monotonic()
    assert run(["sh", "-c", "setsid sleep 8 & echo done"], timeout_s=30).stdout == "done\n"
    assert time.monotonic() - started < 6


def test_secrets_are_masked_everywhere(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed) as failed:
        run(["sh", "-c", "echo hunter2; exit 1"], secrets=["hunter2", ""], timeout_s=10)
    assert "hunter2" not in str(failed.value) + repr(failed.value.argv) + capfd.readouterr().out


def test_split_characters_and_bad_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(["sh", "-c", r"printf '\303'; sleep 0.1; printf '\244\377\n'"], timeout_s=10)
    assert done.stdout == "ä\ufffd\n"


def test_lines_can_be_replaced_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    run(["printf", "a\\nb\\n"], on_line=lambda line: line.upper() if line == "a" else None, timeout_s=10)
    assert capfd.readouterr().out.splitlines()[1:] == ["<6>A"]


def test_apt_progress_grows_and_drops_chatter() -> None:
    reports: list[float] = []
    progress = AptProgress(lambda message, percent: reports.append(percent), 10, 60)
    lines = ["0 upgraded, 300 newly installed, 0 to remove and 0 not upgraded."]
    lines += [f"Unpacking p{n} (1.0) ..." for n in range(300)] + [
        f"Setting up p{n} (1.0) ..." for n in range(300)
    ]
    shown = [line for line in lines if progress.line(line) is not None]
    assert len(shown) == 301
    assert reports == sorted(reports)
    assert reports[0] >= 12
    assert 58 <= reports[-1] <= 60
    assert len(reports) <= 26
