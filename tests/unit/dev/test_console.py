"""Following a console log until a text appears."""

import threading
import time
from pathlib import Path

import pytest

from devstack.console import follow_until, printable
from pvccommon.errors import TimedOut


def test_lines_up_to_an_unfinished_prompt(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"\x1b[0mBooting\r\n\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\nweb1 login: ")
    lines = list(follow_until(log, "web1 login:", 5))
    assert lines == ["Booting", "", "Debian GNU/Linux 12 web1 ttyS0", "", "web1 login:"]


def test_file_that_appears_and_grows_in_the_middle_of_a_character(tmp_path: Path) -> None:
    log = tmp_path / "console.log"

    def write() -> None:
        time.sleep(0.2)
        with log.open("ab", buffering=0) as file:
            for chunk in (b"caf\xc3", b"\xa9\nweb1 lo", b"gin: "):
                file.write(chunk)
                time.sleep(0.15)

    writer = threading.Thread(target=write)
    writer.start()
    assert list(follow_until(log, "web1 login:", 10)) == ["café", "web1 login:"]
    writer.join()


def test_prompt_that_does_not_come_is_an_error_after_the_time(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("Kernel panic\n")
    with pytest.raises(TimedOut, match="web1 login:"):
        list(follow_until(log, "web1 login:", 0.3))
    with pytest.raises(TimedOut):
        list(follow_until(tmp_path / "absent", "web1 login:", 0.3))


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("plain", "plain"),
        ("\x1b[2J\x1b[01;01H[\x1b[0;32m  OK  \x1b[0m] Started", "[  OK  ] Started"),
        ("\x1b]0;title\x07text", "text"),
        ("a\x00b\x08c\r", "abc"),
        ("\x1bc\x1b[?7lready", "ready"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_control_characters_are_taken_out(raw: str, shown: str) -> None:
    assert printable(raw) == shown
