"""The decoder's process: what it makes of images, and what it cannot do."""

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pvccommon.errors import EnvironmentFault, PvcError, WrongInput
from pvccommon.images.frames import DATA, Frame, read_frames
from pvcnoded.imports.confined import confined_program

pytestmark = pytest.mark.system

MIB = 1024**2


def decode(path: Path, kind: str, form: str, size: int | None = None) -> list[Frame]:
    """All frames the decoder makes of a file. Raises its error."""
    arguments = [kind, form, str(path.stat().st_size if size is None else size)]
    with confined_program("pvccommon.images.decoder", arguments, cpu_s=60) as program:
        assert program.stdin is not None and program.stdout is not None
        feeder = threading.Thread(target=feed, args=(path, program.stdin), daemon=True)
        feeder.start()
        try:
            return list(read_frames(program.stdout))
        finally:
            program.kill()
            feeder.join()


def feed(path: Path, pipe: object) -> None:
    try:
        pipe.write(path.read_bytes())  # type: ignore[attr-defined]
        pipe.close()  # type: ignore[attr-defined]
    except (BrokenPipeError, ValueError):
        pass


def content(frames: list[Frame], size: int) -> bytes:
    disk = bytearray(size)
    for frame in frames:
        if frame.kind == DATA:
            disk[frame.offset : frame.offset + len(frame.data)] = frame.data
    return bytes(disk)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with data, holes and more data."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(3 * MIB) + bytes(20 * MIB) + b"text" * MIB)
    return path


def test_raw_and_stream_give_the_same_disk(raw: Path, tmp_path: Path) -> None:
    stream = tmp_path / "disk.vmdk"
    convert = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", str(raw), str(stream)]
    subprocess.run(convert, check=True)
    size = raw.stat().st_size
    for frames in (decode(raw, "disk", "raw"), decode(stream, "disk", "vmdk")):
        assert frames[0].document["disks"] == [{"disk_id": "sda", "size_bytes": size}]
        assert content(frames, size) == raw.read_bytes()
        assert sum(len(frame.data) for frame in frames) < 8 * MIB, "zeros are not sent"


def test_what_is_no_iso_is_refused(raw: Path) -> None:
    with pytest.raises(WrongInput, match="not ISO 9660"):
        decode(raw, "iso", "iso")


def test_longer_and_shorter_streams_are_refused(raw: Path) -> None:
    size = raw.stat().st_size
    with pytest.raises(WrongInput, match="ended after"):
        decode(raw, "disk", "raw", size + 1)


PROBE = """
import json, os, socket, subprocess, sys
def tried(action):
    try:
        return repr(action())
    except BaseException as exc:
        return type(exc).__name__
found = {
    "passwords": tried(lambda: open("/etc/shadow").read()),
    "configuration": tried(lambda: os.listdir("/etc/pvc")),
    "home": tried(lambda: os.listdir("/root")),
    "write": tried(lambda: open("/usr/bin/x", "w")),
    "network": tried(lambda: socket.create_connection(("127.0.0.1", 22), 1)),
    "memory": tried(lambda: len(bytearray(3 << 30))),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "uid": os.getuid(),
    "environment": sorted(set(os.environ) - {"PWD"}),
    "capabilities": [line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1],
}
print(json.dumps(found))
"""


def test_it_can_do_nothing_but_read_and_write_its_pipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pvccommon"
    package.mkdir(mode=0o755)
    (package / "__init__.py").touch()
    (package / "probe.py").write_text(PROBE)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    monkeypatch.setattr("pvccommon.__file__", str(package / "__init__.py"))
    with confined_program("pvccommon.probe", [], cpu_s=5) as program:
        output, errors = program.communicate(timeout=30)
    found = json.loads(output or b"{}")
    assert found, errors.decode()
    assert found.pop("processes") <= 3
    assert found.pop("uid") != 0
    assert set(found.pop("capabilities")) == {"0"}
    assert found.pop("environment") == ["LC_CTYPE", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"]
    assert found.pop("memory") == "MemoryError"
    assert {what: answer for what, answer in found.items() if not answer.endswith("Error")} == {}


def test_endless_work_is_ended() -> None:
    with confined_program("timeit", ["-n", "1", "while True: pass"], cpu_s=1) as program:
        assert program.wait(timeout=30) != 0


def test_a_decoder_that_lies_is_not_believed() -> None:
    class Lies:
        def __init__(self, text: bytes) -> None:
            self.text = text

        def read(self, length: int, /) -> bytes:
            piece, self.text = self.text[:length], self.text[length:]
            return piece

    for lie in (b"", b"D" + b"\xff" * 12, b"Q" + bytes(12), b"P" + bytes(12), b"P\x02" + bytes(11) + b"[]"):
        with pytest.raises((EnvironmentFault, PvcError)):
            list(read_frames(Lies(lie)))


def test_one_that_is_ended_while_it_starts_leaves_no_process() -> None:
    """bwrap's child waits for bwrap: one that is killed alone would leave it waiting for ever."""
    marker = f"{os.getpid()}-{time.monotonic_ns()}"
    for number in range(60):
        with confined_program("timeit", ["-n", "1", f"'{marker}'; input()"], cpu_s=1):
            time.sleep(number * 0.0005)
    deadline = time.monotonic() + 10
    while (left := running(marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def running(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
